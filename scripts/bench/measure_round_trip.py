"""Compare gradients through recovered states with those through kept ones, in half precision.

A recovered state differs from the kept one in the last digits of float64. Where that difference
crosses a boundary between two numbers in half precision, an input of the network is rounded the
other way, and the round trip shows it. Many starts, on random weights of Stable Diffusion 1.4's
architecture; the loss is linear in x_0. Products of attention are not the same twice on a GPU:
`same` is how far two gradients with kept states are apart.

    python scripts/bench/measure_round_trip.py --out build/round_trip.jsonl "obelm 20" "edict 50"

One line of JSON a setting: how many starts crossed a boundary, and relative differences of
gradients, the median of all starts and the largest of those.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
from architectures import make_model
from torch import Tensor

from doodl_cli.gradient import Gradient, differentiate
from doodl_cli.optimize import initial_noise
from doodl_cli.sampling import SAMPLERS, make_grid

CROSSED = 1e-6  # of the round trip: thousands of times the error of float64


def compare(sampler: str, n_steps: int, n_starts: int, device: torch.device) -> dict[str, object]:
    """Return what many starts show."""
    model = make_model("sd14", torch.float16, device)
    table = SAMPLERS[sampler](make_grid(model.schedule, n_steps))
    net = model.net(["a red apple"], [""], 7.5, captured=True)
    slope = initial_noise([10_000], model.latent_shape).to(device)

    def loss(x_0: Tensor) -> tuple[Tensor, None]:
        return (slope * x_0).flatten(1).sum(1), None

    def find(seed: int, memory: str) -> Gradient:
        x_T = initial_noise([seed], model.latent_shape).to(device)
        return differentiate(table, net, (x_T, x_T.clone()), loss, memory)

    crossed, apart, same = [], [], []
    for seed in range(n_starts):
        recovered, kept, again = (find(seed, x) for x in ("reversible", *["checkpoint"] * 2))
        crossed.append(recovered.round_trip_error.item() > CROSSED)
        apart.append(distance(recovered, kept))
        same.append(distance(again, kept))
    return {
        "sampler": sampler,
        "n_steps": n_steps,
        "n_starts": n_starts,
        "n_crossed": sum(crossed),
        "same": [statistics.median(same), max(same)],
        "apart": [statistics.median(apart), max(apart)],
        "apart_crossed": [x for x, yes in zip(apart, crossed, strict=True) if yes],
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
    }


def distance(one: Gradient, other: Gradient) -> float:
    """Return the relative difference of two gradients."""
    a, b = torch.stack(one.pair), torch.stack(other.pair)
    return ((a - b).norm() / b.norm()).item()


def main() -> None:
    """Compare for every sampler and number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="+", help="a sampler and its number of steps")
    parser.add_argument("--n-starts", type=int, default=40)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for setting in args.settings:
        sampler, n_steps = setting.split()
        line = compare(sampler, int(n_steps), args.n_starts, device)
        with args.out.open("a") as out:
            print(json.dumps(line), file=out)
        print(line, flush=True)


if __name__ == "__main__":
    main()
