"""Measure one optimisation step: seconds, peak memory and evaluations, on random weights.

The weights have the real architectures' shapes, so that nothing is downloaded. A step is what
`doodl run` does between two lines of history.jsonl: generate, decode, score, pull back, update.

    python scripts/bench/measure_steps.py --out build/steps.jsonl "model=sd14 n_steps=50"

One line of JSON a setting: the median of the steps after the first, in which graphs are captured;
`total` is all of them and the judgement of the last. `limit=24` makes it a card of 24 GiB.
`scripts/bench/write_table.py` turns them into the tables of docs/performance.md. Give one setting a
command for the memory: 0.2 GiB of each earlier one's graphs stay in use (NVIDIA H200).
"""

import argparse
import gc
import json
import statistics
import time
from pathlib import Path

import torch
from architectures import make_guidance, make_model, pose

from doodl_cli.commands.task import set_precision
from doodl_cli.optimize import Settings, initial_noise, optimize

DEFAULTS = {
    "model": "sd14",
    "sampler": "edict",
    "n_steps": "50",
    "batch": "1",
    "memory": "reversible",
    "dtype": "float16",
    "guidance": "aesthetic",
    "cfg_scale": "7.5",
    "unet_checkpointing": "false",
    "compile": "false",
    "repeats": "5",
    "limit": "",
}
GIB = 2**30


def measure(given: dict[str, str], device: torch.device) -> dict[str, object]:
    """Return what a setting costs."""
    if given["limit"]:
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(float(given["limit"]) * GIB / whole)
    began = time.perf_counter()
    dtype = getattr(torch, set_precision(given["dtype"]))
    model = make_model(
        given["model"], dtype, device, given["unet_checkpointing"] == "true",
        given["compile"] == "true",
    )  # fmt: skip
    half = device.type == "cuda" and dtype != torch.float32
    problem = pose(
        model,
        make_guidance(given["guidance"], device, half),
        int(given["batch"]),
        sampler=given["sampler"],
        n_steps=int(given["n_steps"]),
        cfg_scale=float(given["cfg_scale"]),
        memory=given["memory"],
    )
    seeds = problem.seeds
    x_T = initial_noise(seeds, model.latent_shape).to(device)
    settings = Settings(n_iters=int(given["repeats"]) + 1, clip=1e-3)
    loaded = time.perf_counter() - began
    seconds, first, error, norm, began = [], 0.0, 0.0, 0.0, time.perf_counter()
    for record in optimize(problem, settings, (x_T, x_T.clone())):
        if record.iteration == 0:
            first = record.seconds
            calls = (model.calls.network // len(seeds), model.calls.vjps // len(seeds))
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
        elif record.iteration <= int(given["repeats"]):
            seconds.append(record.seconds)
            error = max(error, *record.round_trip_error)
            norm = record.grad_norm[0]
    total = time.perf_counter() - began
    cuda = device.type == "cuda"
    return {
        **given,
        "seconds": round(statistics.median(seconds), 3),
        "spread": [round(min(seconds), 3), round(max(seconds), 3)],
        "first": round(first, 1),
        "total": round(total, 1),
        "loading": round(loaded, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 3) if cuda else None,
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2) if cuda else None,
        "micro_batch": min(problem.micro_batch.size, len(seeds)),
        "calls": calls[0],
        "vjps": calls[1],
        "round_trip_error": error,
        "grad_norm": norm,
        "loss": record.loss[0],
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
    }


def main() -> None:
    """Measure every setting, one after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="+", help="key=value, separated by blanks")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for setting in args.settings:
        given = {**DEFAULTS, **dict(word.split("=", 1) for word in setting.split())}
        unknown = set(given) - set(DEFAULTS)
        assert not unknown, f"unknown: {unknown}"
        found = measure(given, device)
        with args.out.open("a") as out:
            print(json.dumps(found), file=out)
        print(setting, {k: v for k, v in found.items() if k not in DEFAULTS}, flush=True)
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
