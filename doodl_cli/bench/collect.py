"""From finished runs to one line a sample: scores, checks, change, cost."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from doodl_cli.bench.budget import KNOBS, count
from doodl_cli.bench.checks import check, choose_judges, look, measure_presence, share_held
from doodl_cli.bench.metrics import in_batches, rms_difference
from doodl_cli.bench.runs import Part
from doodl_cli.bench.settings import Bench
from doodl_cli.bench.suite import Row
from doodl_cli.config import flatten, read_config, show
from doodl_cli.files import read_values
from doodl_cli.optimize.assess import from_8_bit
from doodl_cli.pictures import from_image, read_picture

if TYPE_CHECKING:
    from doodl_cli.models.latent_model import LatentModel

CHECKS, PRESENCE = "checks", "presence"


@dataclass(frozen=True)
class Point:
    """A sample's best picture after `calls`: what was optimised, and the held-out scores."""

    calls: float
    scores: dict[str, float]


@dataclass(frozen=True)
class Sample:
    """A method's best picture for a row of a suite and a seed of the bench.

    `scores`: what was optimised, what was held out and, where the suite has checks, their share and
    each of them. `change`: root mean square difference to the same x_T's plain picture. `calls` and
    `seconds`: of its run, a sample. `embedding`: of the held-out CLIP, a unit vector, if there is
    one. `curve`: how the best picture so far scores.
    """

    part: str
    method: str
    seed: int
    number: int
    row: Row
    folder: Path
    scores: dict[str, float]
    change: float
    calls: float
    network_calls: float
    vjps: float
    seconds: float
    embedding: np.ndarray | None
    curve: list[Point] = field(default_factory=list)


@dataclass(frozen=True)
class Results:
    """All samples of a bench; `real` holds the embeddings of a part's real pictures (n, d).

    `settings`: by part and method, what spent the budget and how strong the method was.
    """

    bench: Bench
    parts: list[Part]
    samples: list[Sample]
    real: dict[str, np.ndarray]
    settings: dict[tuple[str, str], str]

    def of(self, part: str, method: str | None = None) -> list[Sample]:
        """Return the samples of a part, or of one method on it."""
        return [s for s in self.samples if s.part == part and method in (None, s.method)]


def collect(
    path: Path, parts: Sequence[Part], bench: Bench, model: "LatentModel"
) -> Results | None:
    """Read every run of a bench and measure its pictures; None where samples are missing."""
    samples: list[Sample] = []
    settings = {}
    for part in parts:
        folders = sorted((path / "runs" / part.name).glob("*/*"))
        found = [s for folder in folders for s in read_run(folder, part, bench, model)]
        counts = [sum(sample.method == method for sample in found) for method in part.methods]
        if any(count != len(part.rows) * len(bench.seeds) for count in counts):
            return None
        for folder in folders:
            settings[part.name, folder.parent.name] = read_setting(folder)
        order = {method: i for i, method in enumerate(part.methods)}
        samples += sorted(found, key=lambda s: (order[s.method], s.seed, s.number))
    real = {
        part.name: embed(read_pictures(part.real), model)
        for part in parts
        if part.real is not None and has_held_out(model)
    }
    return Results(bench, list(parts), samples, real, settings)


def read_setting(folder: Path) -> str:
    """Return what spent a run's budget, and its method's other settings."""
    values = flatten(read_values(folder / "config.yaml", yaml.safe_load))
    method = values["method.name"]
    names = [KNOBS[method]] if method in KNOBS else []
    names += [name for name in values if name.startswith("method.") and name != "method.name"]
    if method == "doodl":
        names += ["sampler.n_steps", "optimizer.lr", "optimizer.clip"]
        names += ["optimizer.n_candidates"] if values["optimizer.n_candidates"] > 1 else []
    found = {name: value for name in names if (value := values[name]) is not None}
    return " ".join(f"{name.rpartition('.')[2]}={show(value)}" for name, value in found.items())


def read_run(folder: Path, part: Part, bench: Bench, model: "LatentModel") -> list[Sample]:
    """Return the samples of a run directory, none where it is not done."""
    metadata = read_values(folder / "metadata.json", json.loads)
    if metadata.get("status") != "done":
        return []
    method, seed = folder.parent.name, int(folder.name.partition("-")[0])
    lines = (folder / "prompts.jsonl").read_text("utf-8").splitlines()
    requests = [json.loads(line) for line in lines]
    places = [folder / "samples" / request["name"] for request in requests]
    pictures = [read_image(place / "best.png") for place in places]
    embeddings: Sequence[np.ndarray | None] = [None] * len(pictures)
    if has_held_out(model):
        embeddings = list(embed([from_8_bit(picture) for picture in pictures], model))
    names = ("network_calls", "vjps", "seconds")
    cost = {name: metadata["cost"][name] / len(requests) for name in names}
    calls = count(cost["network_calls"], cost["vjps"], bench.vjp_cost)
    config = read_config(read_values(folder / "config.yaml", yaml.safe_load))
    rows = [part.rows[request["number"]] for request in requests]
    checks = read_checks(rows, pictures, model, config.guidance)
    curves = read_curves(folder / "history.jsonl", metadata, calls, config.n_searched)
    samples = []
    for i, (request, found) in enumerate(zip(requests, metadata["samples"], strict=True)):
        before = read_image(places[i] / "initial.png")
        samples.append(
            Sample(
                part=part.name,
                method=method,
                seed=seed,
                number=request["number"],
                row=rows[i],
                folder=places[i],
                scores={**read_scores(found), **checks[i]},
                change=rms_difference(before.numpy(), pictures[i].numpy()),
                calls=calls,
                network_calls=cost["network_calls"],
                vjps=cost["vjps"],
                seconds=cost["seconds"],
                embedding=embeddings[i],
                curve=curves[request["number"]],
            )
        )
    return samples


def read_scores(found: dict[str, Any]) -> dict[str, float]:
    """Return the scores of a sample's best picture, those that are numbers."""
    scores = {**found["best"], **found["evaluate"]["best"]}
    return {name: value for name, value in scores.items() if value is not None}


def read_checks(
    rows: Sequence[Row], pictures: Sequence[Tensor], model: "LatentModel", guided: Collection[str]
) -> list[dict[str, float]]:
    """Return of each row's picture its checks' scores, none where nothing is to be checked.

    The share of the checks that hold, how surely the wanted classes are seen, if there are any, to
    four digits, as further ones differ between machines, and each check.
    """
    if not any(row.check for row in rows):
        return [{}] * len(rows)
    wanted = [row.check for row in rows]
    seen = look(wanted, pictures, choose_judges(model, guided))
    found = zip(check(wanted, pictures, seen), measure_presence(wanted, seen), strict=True)

    def put_together(held: dict[str, float], present: float | None) -> dict[str, float]:
        presence = {} if present is None else {PRESENCE: round(present, 4)}
        each = {f"{CHECKS}.{name}": value for name, value in held.items()}
        return {CHECKS: share_held(held), **presence, **each}

    return [put_together(held, present) if held else {} for held, present in found]


def read_curves(
    path: Path, metadata: dict[str, Any], calls: float, n_searched: int
) -> dict[int, list[Point]]:
    """Return by sample how its best picture so far scores, against the calls so far.

    The pictures of a search cost a plain one each. After them, all iterations of a method but the
    first, a plain picture, cost the same.
    """
    n_plain = metadata["sampler"]["calls_per_sample"]
    lines: dict[int, list[dict[str, Any]]] = {}
    for text in path.read_text("utf-8").splitlines():
        line = json.loads(text)
        lines.setdefault(line["sample"], []).append(line)
    last = max(line["iteration"] for of_sample in lines.values() for line in of_sample)
    begun = n_plain * (n_searched + 1)

    def cost_until(iteration: int) -> float:
        if iteration < n_searched:
            return n_plain * (iteration + 1)
        done = (iteration - n_searched) / max(last - n_searched, 1)
        return begun + (calls - begun) * done

    curves = {}
    for number, of_sample in lines.items():
        points: list[Point] = []
        scores: dict[str, float] = {}
        for line in of_sample:
            if line["best"]:
                found = {**line["guidance"], **line["evaluate"]}
                scores = {name: value for name, value in found.items() if value is not None}
            points.append(Point(cost_until(line["iteration"]), scores))
        curves[number] = points
    return curves


def has_held_out(model: "LatentModel") -> bool:
    """Whether a model has a CLIP that measures: the embedded one, or one that is named."""
    return model.held_out is not None or model.name == "emoji"


def embed(pictures: Sequence[Tensor], model: "LatentModel") -> np.ndarray:
    """Return the held-out CLIP's unit embeddings (n, d) of pictures (3, h, w) in [-1, 1]."""
    return in_batches(model.clip_b.embed_images, pictures, model.device).float().cpu().numpy()


def read_image(path: Path) -> Tensor:
    """Return a picture of a run as uint8 (3, h, w)."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def read_pictures(folder: Path) -> list[Tensor]:
    """Return the pictures of a folder as float32 (3, h, w) in [-1, 1], by name."""
    return [from_image(read_picture(str(p), "suite.real")) for p in sorted(folder.glob("*.png"))]
