"""Measure what replaying CUDA graphs saves where `memory=full` keeps a small batch's whole graph.

    python scripts/bench/measure_graphs.py

The embedded model on a GPU: median seconds of one gradient at x_T, of calls launched one by one and
of replayed ones, and how far the two gradients differ. The colourfulness is asked for, which costs
next to nothing.
"""

import statistics
import time
from dataclasses import replace

import torch
from architectures import pose
from torch import Tensor

from doodl_cli.commands.task import set_precision
from doodl_cli.guidance.guidance import Guidance, ignore_prompts
from doodl_cli.guidance.scores import colourfulness
from doodl_cli.models.latent_model import load_model
from doodl_cli.models.tuning import tune
from doodl_cli.optimize import initial_noise
from doodl_cli.optimize.assess import assess
from doodl_cli.optimize.noise import make_generators
from doodl_cli.problem import Problem

SETTINGS = ((1, 12), (8, 12), (48, 3), (96, 3))  # samples, steps
N_REPEATS = 7


def measure(problem: Problem, x_T: Tensor) -> tuple[float, Tensor]:
    """Return the median seconds of a gradient, and the gradient."""
    seconds = []
    for _ in range(2 + N_REPEATS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        generators = make_generators(problem.seeds, "optimize")
        found = assess(problem, (x_T, x_T.clone()), generators, True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:]), found.gradient


def main() -> None:
    """Measure and print a table."""
    device = torch.device("cuda")
    set_precision("tf32")
    model = load_model("emoji", None, device, "float32")
    tune(model, False, False)
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    print("| samples, steps | one by one, s | replayed, s | relative difference |")
    print("| --- | --- | --- | --- |")
    guidance = {"colourfulness": Guidance(ignore_prompts(colourfulness))}
    for n, n_steps in SETTINGS:
        problem = pose(
            model,
            guidance,
            n,
            sampler="bdia",
            n_steps=n_steps,
            cfg_scale=2.5,
            memory="full",
        )
        x_T = initial_noise(problem.seeds, model.latent_shape).to(device)
        plain, expected = measure(replace(problem, net=replace(problem.net, captures=None)), x_T)
        replayed, found = measure(problem, x_T)
        error = float((found - expected).norm() / expected.norm())
        print(f"| {n}, {n_steps} | {plain:.3f} | {replayed:.3f} | {error:.1e} |", flush=True)


if __name__ == "__main__":
    main()
