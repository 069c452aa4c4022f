"""Run directories to rows, one a sample. What is missing or damaged is said in the row."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from doodl_cli.config import flatten, read_config
from doodl_cli.errors import UserError
from doodl_cli.files import read_values
from doodl_cli.history import HELD_OUT, Curves, read_curves
from doodl_cli.requests import read_requests

MARKS = ("metadata.json", "config.yaml")  # either one makes a folder a run directory


@dataclass(frozen=True)
class Row:
    """A sample of a run. `cause`: why the run or the sample ended early, "" if it did not.

    `scores`: name to the values at the start, the best and the last iterate; held-out ones have
    `held_out` before their names. `curves`: name to (iteration, value) pairs.
    """

    run: Path
    folder: Path
    status: str
    cause: str
    settings: dict[str, Any]
    prompt: str = ""
    seed: int | None = None
    best_iteration: int | None = None
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)


def find_runs(folder: Path) -> list[Path]:
    """Return the run directories at or below a folder, in the order of their names.

    Raises UserError where there is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: must be a run directory or a folder of them")
    found = {path.parent for mark in MARKS for path in folder.rglob(mark)}
    runs = [path for path in found if path.name != ".hydra" and not found & set(path.parents)]
    if not runs:
        raise UserError(f"{folder}: holds no run directory (no metadata.json)")
    return sorted(runs, key=natural_order)


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Order a sweep's jobs 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in path.parts]


def collect(run: Path) -> list[Row]:
    """Return the rows of a run directory, at least one."""
    settings = read_values(run / "config.yaml", yaml.safe_load)
    settings = {name: value for name, value in flatten(settings).items() if name != "output_dir"}
    metadata = read_values(run / "metadata.json", json.loads)
    if not metadata:
        return [Row(run, run, "failed", "metadata.json cannot be read", settings)]
    status, cause = str(metadata.get("status")), str(metadata.get("error", ""))
    samples = metadata.get("samples") or [{}]
    places = find_places(run, len(samples))
    curves = read_curves(run)
    return [
        Row(
            run=run,
            folder=run / "samples" / name,
            status=status,
            cause=cause or str(sample.get("stopped") or ""),
            settings=settings,
            prompt=sample.get("prompt", settings.get("prompt") or ""),
            seed=sample.get("seed"),
            best_iteration=sample.get("best_iteration"),
            scores=read_scores(sample),
            curves=curves.get(number, {}),
        )
        for sample, (number, name) in zip(samples, places, strict=True)
    ]


def find_places(run: Path, n_samples: int) -> list[tuple[int, str]]:
    """Return each sample's number in the history and its folder's name."""
    places = [(i, f"{i:03}") for i in range(n_samples)]
    try:
        config = read_config(read_values(run / "config.yaml", yaml.safe_load))
        requests = read_requests(config, run)
    except (UserError, OSError, ValueError, TypeError):
        return places
    named = [(request.number, request.name) for request in requests[:n_samples]]
    return named + places[len(named) :]


def read_scores(sample: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return a sample's scores by name, each at its iterates."""
    scores: dict[str, dict[str, float | None]] = {}
    held_out = sample.get("evaluate", {})
    for iterate in ("initial", "best", "final"):
        guided = sample.get(iterate) or {}
        for name, value in guided.items():
            scores.setdefault(name, {})[iterate] = value
        for name, value in (held_out.get(iterate) or {}).items():
            if name not in guided:
                scores.setdefault(f"{HELD_OUT}{name}", {})[iterate] = value
    return scores
