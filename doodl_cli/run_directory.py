"""The files of a run: records go in; pictures, curves, latents and metadata come out.

Every file but the history is written under another name and then moved into place, so that none is
ever half there. What a run has found so far is on disk while it goes on: the history line by line,
pictures and metadata every few seconds.
"""

import io
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save
from torch import Tensor

from doodl_cli.config import Config
from doodl_cli.errors import Terminated
from doodl_cli.figures import draw_curves, draw_grid, enlarge
from doodl_cli.optimize import Record

FLUSH_SECONDS = 10.0
FRAME_MILLISECONDS = 150


@dataclass
class Iterate:
    """One sample at one iteration: its picture (3, h, w) in uint8, its pair (2, c, h, w)."""

    iteration: int
    image: Tensor
    pair: Tensor | None = None
    guidance: dict[str, float] = field(default_factory=dict)
    evaluate: dict[str, float] = field(default_factory=dict)


@dataclass
class Sample:
    """What is kept of a sample: three iterates, its lines of the history, its pictures."""

    prompt: str
    seed: int
    initial: Iterate | None = None
    best: Iterate | None = None
    final: Iterate | None = None
    stopped: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)

    @property
    def iterates(self) -> dict[str, Iterate]:
        """The iterates there are, by name."""
        named = {"initial": self.initial, "best": self.best, "final": self.final}
        return {name: iterate for name, iterate in named.items() if iterate is not None}


class RunDirectory:
    """A run's folder. A context manager: leaving it, for whatever reason, writes all there is.

    `facts` is what metadata.json says from the start; `cost` returns what the run has cost so far;
    `hydra` holds the files of .hydra/ by name.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        facts: dict[str, Any],
        cost: Callable[[], dict[str, Any]],
        hydra: dict[str, str],
    ) -> None:
        assert config.prompt is not None
        self.path = path
        self.config = config
        self.facts = {"started": datetime.now().astimezone().isoformat(), **facts}
        self.cost = cost
        self.samples = [Sample(config.prompt, seed) for seed in config.seeds]
        self.round_trip_error = math.nan
        self.flushed = time.monotonic()
        for name, text in hydra.items():
            self.write(f".hydra/{name}", text.encode())
        settings = yaml.safe_dump(config.to_dict(), allow_unicode=True, sort_keys=False)
        self.write("config.yaml", settings.encode())
        self.write_metadata("running")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        status = "done"
        if kind is not None:
            interrupted = issubclass(kind, KeyboardInterrupt | Terminated)
            status = "interrupted" if interrupted else "failed"
        with signals_deferred():
            try:
                self.write_results()
            except BaseException:
                status = "failed"
                raise
            finally:
                self.write_metadata(status)

    def add(self, record: Record) -> None:
        """Take in an iteration of every sample that has not stopped."""
        with signals_deferred():
            lines = [
                self.add_to_sample(i, record)
                for i, sample in enumerate(self.samples)
                if not sample.stopped
            ]
            with (self.path / "history.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(f"{to_json(line)}\n" for line in lines)
            for error in record.round_trip_error:
                self.round_trip_error = largest(self.round_trip_error, error)
            if record.iteration == 0 or time.monotonic() - self.flushed > FLUSH_SECONDS:
                self.write_pictures()
                self.write_metadata("running")
                self.flushed = time.monotonic()

    def add_to_sample(self, i: int, record: Record) -> dict[str, Any]:
        """Keep sample i of a record and return its line of the history."""
        sample = self.samples[i]
        iterate = Iterate(
            record.iteration,
            record.images[i],
            torch.stack([record.pair[0][i], record.pair[1][i]]).cpu(),
            {name: values[i] for name, values in record.guidance.items()},
            {name: values[i] for name, values in record.evaluate.items()},
        )
        if not record.active[i]:
            sample.stopped = f"the loss is NaN at iteration {record.iteration}"
        elif record.stopped:
            sample.stopped = record.stopped[i]
        if record.active[i] or sample.initial is None:
            sample.final = iterate
            sample.frames.append(iterate.image)
        if record.best[i] or sample.best is None:
            sample.best = iterate
        sample.initial = sample.initial or iterate
        line = {
            "sample": i,
            "iteration": record.iteration,
            "loss": record.loss[i],
            "guidance": iterate.guidance,
            "evaluate": iterate.evaluate,
            "terms": {
                name: {"loss": losses[i], "share": record.shares[name][i]}
                for name, losses in record.terms.items()
            },
            "grad_norm": record.grad_norm[i],
            "latent_norm": record.latent_norm[i],
            "seconds": record.seconds,
        }
        if record.regularisers:
            line["regularisers"] = {name: x[i] for name, x in record.regularisers.items()}
        sample.history.append(line)
        return line

    def add_pictures(self, images: Tensor) -> None:
        """Take in pictures (b, 3, h, w) that were rendered without being optimised."""
        for sample, image in zip(self.samples, images, strict=True):
            sample.initial = Iterate(0, image)

    def add_inversions(self, images: Tensor, pair: tuple[Tensor, Tensor]) -> None:
        """Take in rendered pictures (b, 3, h, w) with the pair at x_T that an inversion found.

        It is like a run without an iteration: initial, best and final are one.
        """
        for sample, image, u, v in zip(self.samples, images, *pair, strict=True):
            iterate = Iterate(0, image, torch.stack([u, v]).cpu())
            sample.initial = sample.best = sample.final = iterate

    def write_results(self) -> None:
        """Write every file that sums up the run so far."""
        self.write_pictures()
        self.write_latents()
        if not any(sample.history for sample in self.samples):
            return
        for i, sample in enumerate(self.samples):
            self.write(f"samples/{i:03}/trajectory.webp", to_webp(sample.frames))
        rows = [[caption(sample, name) for name in ("initial", "best")] for sample in self.samples]
        self.write("grid.png", to_png(draw_grid(rows)))
        histories = [sample.history for sample in self.samples]
        best = [sample.iterates["best"].iteration for sample in self.samples]
        self.write("loss.png", draw_curves(histories, best))

    def write_latents(self) -> None:
        for i, sample in enumerate(self.samples):
            pairs = {
                f"x_T_{name}": iterate.pair.clone()  # safetensors refuses one tensor twice
                for name, iterate in sample.iterates.items()
                if iterate.pair is not None
            }
            if pairs:
                self.write(f"samples/{i:03}/latents.safetensors", save(pairs))

    def write_pictures(self) -> None:
        settings = self.config.to_dict()
        del settings["output_dir"]  # a picture rendered again elsewhere is the same file
        for i, sample in enumerate(self.samples):
            text = {
                "prompt": sample.prompt,
                "negative_prompt": self.config.negative_prompt,
                "seed": str(sample.seed),
                "model": self.config.model.name,
                "settings": to_json(settings),
            }
            for name, iterate in sample.iterates.items():
                self.write(f"samples/{i:03}/{name}.png", to_png(to_image(iterate.image), text))

    def write_metadata(self, status: str) -> None:
        metadata = {
            "status": status,
            **self.facts,
            "seeds": [sample.seed for sample in self.samples],
            "prompts": [sample.prompt for sample in self.samples],
            "round_trip_error": self.round_trip_error,
            "cost": self.cost(),
            "samples": [describe_sample(sample) for sample in self.samples],
        }
        self.write("metadata.json", f"{to_json(metadata, indent=2)}\n".encode())

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the directory, whole or not at all."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.part")
        partial.write_bytes(content)
        os.replace(partial, path)


def describe_sample(sample: Sample) -> dict[str, Any]:
    """Return a sample's entry in metadata.json."""
    iterates = sample.iterates
    return {
        "prompt": sample.prompt,
        "seed": sample.seed,
        "best_iteration": sample.best.iteration if sample.best else None,
        **{name: iterate.guidance for name, iterate in iterates.items()},
        "evaluate": {name: iterate.evaluate for name, iterate in iterates.items()},
        "stopped": sample.stopped,
    }


def caption(sample: Sample, name: str) -> tuple[Image.Image, list[str]]:
    """Return a picture for the grid and the lines below it."""
    iterate = sample.iterates[name]
    scores = [f"{term} {score:.4g}" for term, score in iterate.guidance.items()]
    where = f"seed {sample.seed}, {name}"
    if name == "best":
        where += f" (iteration {iterate.iteration})"
    return to_image(iterate.image), [where, *scores]


def to_image(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def to_png(image: Image.Image, text: dict[str, str] | None = None) -> bytes:
    """Encode a picture, with international text chunks."""
    info = PngInfo()
    for name, value in (text or {}).items():
        info.add_itxt(name, value)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def to_webp(frames: list[Tensor]) -> bytes:
    """Encode pictures as an animation, small ones enlarged."""
    first, *rest = (enlarge(to_image(frame)) for frame in frames)
    buffer = io.BytesIO()
    first.save(
        buffer, "WEBP", save_all=True, append_images=rest, duration=FRAME_MILLISECONDS, loop=0,
        lossless=frames[0].shape[-1] <= 128, quality=90,
    )  # fmt: skip
    return buffer.getvalue()


def to_json(value: Any, indent: int | None = None) -> str:
    """Encode as strict JSON: a number that is not finite becomes null."""
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def largest(a: float, b: float) -> float:
    """Return the larger number, ignoring NaN."""
    return b if math.isnan(a) else a if math.isnan(b) else max(a, b)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the files agree with each other again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: arrived.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])
