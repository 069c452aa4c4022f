"""The method in a notebook, on a pipeline that diffusers has loaded (docs/api.md)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from doodl_cli.guidance import Guidance
from doodl_cli.guidance.guidance import ignore_prompts
from doodl_cli.models.pipeline import adapt_pipeline
from doodl_cli.models.tuning import tune
from doodl_cli.optimize import Record, Settings, initial_noise, optimize
from doodl_cli.problem import pose_problem
from doodl_cli.sampling import SAMPLERS, make_grid

PAPER = Settings(n_iters=50, clip=1e-3)


def optimize_pipeline(
    pipeline: Any,
    prompt: str,
    guidance: Callable[[Tensor], Tensor] | Mapping[str, Guidance],
    *,
    negative_prompt: str = "",
    seeds: Sequence[int] = (0,),
    cfg_scale: float = 7.5,
    sampler: str = "edict",
    n_steps: int = 50,
    memory: str = "auto",
    settings: Settings | None = None,
    height: int | None = None,
    width: int | None = None,
) -> Iterator[Record]:
    """Optimise x_T so that the finished pictures score better; yield n_iters + 1 records.

    `guidance` takes pictures (b, 3, h, w) in [-1, 1] and returns a score of each (b,), higher is
    better, that lets the gradient through; several are named Guidances. There is one picture a
    seed. The pipeline's networks are frozen and compute as before; `settings` are the paper's.

    Raises ValueError for a pipeline, a sampler, a size or a memory mode that is not supported.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler={sampler!r}: must be one of {', '.join(SAMPLERS)}")
    for name, side in (("height", height), ("width", width)):
        if side is not None and (side < 8 or side % 8):
            raise ValueError(f"{name}={side}: must be a multiple of 8")
    if not isinstance(guidance, Mapping):
        name = getattr(guidance, "__name__", "guidance")
        guidance = {name: Guidance(ignore_prompts(guidance))}
    model = adapt_pipeline(pipeline, height, width)
    tune(model, unet_checkpointing=False, compiled=False)
    problem = pose_problem(
        model,
        table=SAMPLERS[sampler](make_grid(model.schedule, n_steps)),
        prompts=[prompt] * len(seeds),
        negative_prompts=[negative_prompt] * len(seeds),
        seeds=seeds,
        cfg_scale=cfg_scale,
        memory=memory,
        guidance=guidance,
        evaluation={},
    )
    x_T = initial_noise(seeds, model.latent_shape)
    return optimize(problem, settings or PAPER, (x_T, x_T.clone()))
