"""A model, a sampler's table and scores, put together to be optimised or rendered."""

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from doodl_cli.gradient import choose_memory
from doodl_cli.guidance import Guidance
from doodl_cli.models.latent_model import LatentModel
from doodl_cli.optimize import Problem
from doodl_cli.sampling import Table


def pose_problem(
    model: LatentModel,
    table: Table,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    seeds: Sequence[int],
    cfg_scale: float,
    memory: str,
    guidance: Mapping[str, Guidance],
    evaluation: Mapping[str, Callable[..., Tensor]],
) -> Problem:
    """Return the problem of one sample a prompt and seed; on the CPU they are computed one by one.

    Raises ValueError where the memory mode forbids the sampler.
    """
    choose_memory(table, memory)
    net = model.net(list(prompts), list(negative_prompts), cfg_scale)
    micro_batch = 1 if model.device.type == "cpu" else 0
    n_together = micro_batch or len(prompts)
    asked = guidance and memory == "auto"  # what it costs to find out
    bytes_per_call = n_together * model.bytes_per_call if asked else math.inf
    return Problem(
        table=table,
        net=net,
        decode=model.decode,
        guidance=guidance,
        evaluation=evaluation,
        prompts=prompts,
        seeds=seeds,
        memory=choose_memory(table, memory, bytes_per_call),
        device=model.device,
        micro_batch=micro_batch,
    )
