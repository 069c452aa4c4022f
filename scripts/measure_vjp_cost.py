"""Measure what a call of the network with its gradient costs, in calls: `vjp_cost` of doodl bench.

One guided evaluation at a batch, and one with a vector-Jacobian product to its input; the median of
many. The figure is committed (configs/bench.yaml) rather than measured at every start, so that the
same bench means the same numbers of iterations on every machine.

    python scripts/measure_vjp_cost.py [--model emoji] [--batch 50] [--repeats 30]
"""

import argparse
import time
from collections.abc import Callable

import torch
from embedded.outcomes import read_settings

from doodl_cli.commands import task
from doodl_cli.sampling.solve import evaluate, vjp


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call, the first few left out."""
    times = []
    for _ in range(repeats + 3):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return sorted(times[3:])[repeats // 2]


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    (config,) = read_settings([f"model={args.model}"], device)
    model = task.load(config, torch.device(device))
    net = model.net(["a red apple"] * args.batch, [""] * args.batch, 1.5)
    x = torch.randn(args.batch, *model.latent_shape, device=device, dtype=torch.float64)

    @torch.no_grad()
    def plain() -> None:
        net(x, 500)

    def with_gradient() -> None:
        inner, out = evaluate(net, x, 500)
        vjp(out, inner, torch.ones_like(out))

    call, gradient = (median_seconds(f, args.repeats) for f in (plain, with_gradient))
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{args.model}, batch {args.batch}, {name}: {1e3 * call:.1f} ms a call, "
          f"{1e3 * gradient:.1f} ms with its gradient: {gradient / call:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
