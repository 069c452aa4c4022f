"""Measure how far repeated optimisations differ on a GPU, and what deterministic=true costs.

    python scripts/bench/measure_repeats.py [--iterations 20]

The embedded model with CLIP guidance, and random weights of Stable Diffusion 1.4's architecture
with the aesthetic score by ViT-L/14: how far x_T is apart after the same iterations from the same
start, against how far it went, and the median seconds of an iteration, the first ones left out. On
a CPU a smoke test.
"""

import argparse
import statistics
from collections.abc import Mapping

import torch
from architectures import make_guidance, make_model, pose
from torch import Tensor

from doodl_cli.commands.task import set_determinism, set_precision
from doodl_cli.config import ClipText
from doodl_cli.guidance import Guidance
from doodl_cli.guidance.clip import build_clip_text
from doodl_cli.models.latent_model import LatentModel, load_model
from doodl_cli.models.tuning import tune
from doodl_cli.optimize import Settings, initial_noise, optimize

N_WARM = 2  # iterations, in which graphs are captured
CASES = {  # dtype, sampler, steps, samples, cfg scale
    "emoji": ("tf32", "bdia", 12, 8, 2.5),
    "sd14": ("float16", "obelm", 20, 1, 7.5),
}


def load(name: str, dtype: str, device: torch.device) -> tuple[LatentModel, Mapping[str, Guidance]]:
    """Return a model, laid out for its device, and what guides it."""
    if name == "emoji":
        model = load_model(name, None, device, dtype)
        tune(model, unet_checkpointing=False, compiled=False)
        settings = ClipText(weight=1.0, n_crops=16, reduce="mean", clips=None)
        return model, {"clip_text": build_clip_text(settings, model)}
    model = make_model(name, getattr(torch, dtype), device)
    return model, make_guidance("aesthetic", device, half=device.type == "cuda")


def measure(name: str, deterministic: bool, n_iters: int, device: torch.device) -> str:
    """Return a line of the table: two optimisations from the same start."""
    dtype, sampler, n_steps, n_samples, cfg_scale = CASES[name]
    dtype = set_precision(dtype)
    set_determinism(deterministic)
    model, guidance = load(name, dtype, device)
    problem = pose(
        model,
        guidance,
        n_samples,
        sampler=sampler,
        n_steps=n_steps,
        cfg_scale=cfg_scale,
        memory="auto",
    )
    x_T = initial_noise(problem.seeds, model.latent_shape).to(device)
    settings = Settings(n_iters=n_iters, clip=1e-3)
    ends: list[Tensor] = []
    seconds: list[float] = []
    for _ in range(2):
        records = list(optimize(problem, settings, (x_T, x_T.clone())))
        ends.append(records[-1].pair[0])
        seconds += [record.seconds for record in records[N_WARM:-1]]
    difference = float((ends[1] - ends[0]).norm() / (ends[0] - x_T.cpu()).norm())
    return f"| {name} | {deterministic} | {difference:.1e} | {statistics.median(seconds):.3f} |"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=20)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(torch.cuda.get_device_name() if device.type == "cuda" else "CPU")
    print("torch", torch.__version__)
    print("| model | deterministic | apart, of the way | seconds an iteration |")
    print("| --- | --- | --- | --- |")
    for name in CASES if device.type == "cuda" else ("emoji",):
        for deterministic in (False, True):
            print(measure(name, deterministic, args.iterations, device), flush=True)


if __name__ == "__main__":
    main()
