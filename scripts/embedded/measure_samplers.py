"""Measure how far each sampler's x_0 is from DDIM's in many steps, on the embedded model.

The relative distance |x_0 - x_0*| / |x_0*| to DDIM in 64 steps, mean over prompts, for guidance
scales and numbers of steps. Explicit two-step methods (O-BELM, BDIA at gamma = 1) are of second
order, but only neutrally stable: where guidance makes the network steep, they swing.

    python scripts/embedded/measure_samplers.py
"""

from collections.abc import Callable
from functools import partial

import torch
from pictures import choose_device

from doodl_cli.models.latent_model import LatentModel, load_model
from doodl_cli.optimize import initial_noise
from doodl_cli.sampling import bdia, ddim, edict, make_grid, obelm, solve
from doodl_cli.sampling.schedule import Grid
from doodl_cli.sampling.table import Table

PROMPTS = ("a cat", "a rocket", "a ring on a green background", "a trophy on orange")
CFG_SCALES = (1.0, 2.0, 3.0, 4.0)
RUNS: tuple[tuple[str, Callable[[Grid], Table], int], ...] = (
    ("ddim", ddim, 12),
    ("bdia", bdia, 12),
    ("bdia, gamma 0.96", partial(bdia, gamma=0.96), 12),
    ("bdia", bdia, 40),
    ("bdia, gamma 0.96", partial(bdia, gamma=0.96), 40),
    ("obelm", obelm, 12),
    ("obelm", obelm, 40),
    ("edict", edict, 12),
)


@torch.no_grad()
def sample(
    model: LatentModel, make_table: Callable[[Grid], Table], n_steps: int, cfg_scale: float
) -> torch.Tensor:
    """Return x_0 (b, c, h, w) of every prompt, each from its own seed."""
    table = make_table(make_grid(model.schedule, n_steps))
    net = model.net(list(PROMPTS), [""] * len(PROMPTS), cfg_scale)
    x_T = initial_noise(range(len(PROMPTS)), model.latent_shape).to(model.device)
    return solve(table, net, (x_T, x_T))[table.x_0_slots[0]]


def main() -> None:
    """Print a line a sampler."""
    model = load_model("emoji", None, torch.device(choose_device()), "float32")
    print("sampler steps " + " ".join(f"cfg {scale:g}" for scale in CFG_SCALES))
    reference = {scale: sample(model, ddim, 64, scale) for scale in CFG_SCALES}
    for name, make_table, n_steps in RUNS:
        distances = []
        for scale, exact in reference.items():
            x_0 = sample(model, make_table, n_steps, scale)
            norms = (x_0 - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
            distances.append(norms.mean().item())
        print(f"{name} {n_steps} " + " ".join(f"{value:.3f}" for value in distances), flush=True)


if __name__ == "__main__":
    main()
