"""Measure the embedded model's networks on the CPU: layouts, precisions, threads.

    python scripts/bench/measure_cpu.py

Median CPU seconds of one guided evaluation with its vector-Jacobian product, and of one decoding
with its gradient; the settings take turns, so that a busy machine slows them all.
"""

import copy
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from doodl_cli.models.latent_model import LatentModel, load_model

N_REPEATS = 9


def variants() -> dict[str, LatentModel]:
    """Return the embedded model in several layouts and precisions."""
    plain = load_model("emoji", None, torch.device("cpu"), "float32")
    found = {}
    layouts: dict[str, dict[str, Any]] = {
        "contiguous": {},
        "channels_last": {"memory_format": torch.channels_last},
        "bfloat16": {"dtype": torch.bfloat16},
    }
    for name, options in layouts.items():
        unet = copy.deepcopy(plain.unet).to(**options)
        vae = copy.deepcopy(plain.vae).to(memory_format=options.get("memory_format"))
        found[name] = replace(plain, unet=unet, vae=vae)
    return found


def seconds(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the wall seconds of a function of x with its gradient."""
    began = time.perf_counter()
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(function(leaf).double().sum(), leaf)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    models = variants()
    for n_threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(n_threads)
        taken: dict[tuple[str, str], list[float]] = {}
        for _ in range(N_REPEATS):
            for name, model in models.items():
                x = torch.randn(1, *model.latent_shape, dtype=torch.float64)
                net = model.net(["a red apple"], [""], 1.5)
                parts = {"evaluation": lambda x, net=net: net(x, 500)}
                if name != "bfloat16":  # which takes ten seconds
                    parts["decoding"] = model.decode
                for part, function in parts.items():
                    taken.setdefault((part, name), []).append(seconds(function, x))
        for (part, name), times in taken.items():
            print(f"{n_threads} threads, {part}, {name}: {statistics.median(times):.3f} s")


if __name__ == "__main__":
    main()
