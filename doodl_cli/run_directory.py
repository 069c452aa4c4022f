"""The files of a run: records go in; pictures, curves, latents and metadata come out.

Every file but the logs is written under another name and then moved into place, so that none is
ever half there. What a run has found so far is on disk while it goes on: history, frames and state
at every iteration, pictures and metadata every few seconds.

Samples come in batches, one after another; of those that are finished only the metadata is kept in
memory.
"""

import io
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
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
from doodl_cli.errors import CannotWrite, OutOfTime, Terminated
from doodl_cli.figures import draw_curves, draw_grid, enlarge
from doodl_cli.files import append, cut, make_folder, write_whole, writing
from doodl_cli.history import FILE as HISTORY_FILE
from doodl_cli.history import read_curves
from doodl_cli.optimize import Record
from doodl_cli.requests import FILE as REQUESTS_FILE
from doodl_cli.requests import Request, list_requests, to_jsonl
from doodl_cli.signals import signals_deferred
from doodl_cli.state import FILE as STATE_FILE
from doodl_cli.state import State

FLUSH_SECONDS = 10.0
FRAMES_FILE = "frames.raw"  # bytes of pictures, until the trajectory is made of them
LOOP = "loop."  # before the names of the optimisation's own state
OF_THE_SET = ("output_dir", "prompts", "n_seeds", "batch_size", "shard", "log")
FRAME_MILLISECONDS = 150
FAST = 3  # of zlib: a large picture takes half the time and a quarter more room


@dataclass
class Iterate:
    """One sample at one iteration: its picture (3, h, w) in uint8, its pair (2, c, h, w) at x_T.

    `x_0`: the pair that the picture was decoded from, where x_T alone does not make it.
    """

    iteration: int
    image: Tensor
    pair: Tensor | None = None
    guidance: dict[str, float] = field(default_factory=dict)
    evaluate: dict[str, float] = field(default_factory=dict)
    x_0: Tensor | None = None


@dataclass
class Sample:
    """What is kept of a sample: three iterates, its lines of the history, its pictures.

    `written`: the iterates whose picture files are on disk, by name.
    """

    request: Request
    initial: Iterate | None = None
    best: Iterate | None = None
    final: Iterate | None = None
    stopped: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)
    written: dict[str, Iterate] = field(default_factory=dict)

    @property
    def iterates(self) -> dict[str, Iterate]:
        """The iterates there are, by name."""
        named = {"initial": self.initial, "best": self.best, "final": self.final}
        return {name: iterate for name, iterate in named.items() if iterate is not None}


class RunDirectory:
    """A run's folder. A context manager: leaving it, for whatever reason, writes all there is.

    `facts` is what metadata.json says from the start; `cost` returns what the run has cost so far;
    `hydra` holds the files of .hydra/ by name. `requests` are those of all batches; `earlier` is
    the metadata of the run that this one goes on with, and `state` where it does.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        facts: dict[str, Any],
        cost: Callable[[], dict[str, Any]],
        hydra: dict[str, str],
        requests: Sequence[Request] | None = None,
        earlier: dict[str, Any] | None = None,
        state: State | None = None,
    ) -> None:
        self.path = path
        self.config = config
        self.requests = list_requests(config) if requests is None else requests
        started = datetime.now().astimezone().isoformat()
        self.facts = {"started": (earlier or {}).get("started", started), **facts}
        self.cost = cost
        self.round_trip_error = math.nan
        self.flushed = -math.inf  # when pictures and metadata were last written
        progress: dict[str, Any] = (
            state.progress if state else {"batch": 0, "finished": 0, "bytes": [0, 0]}
        )
        self.batch = progress["batch"]
        self.finished = (earlier or {}).get("samples", [])[: progress["finished"]]
        self.samples: list[Sample] = []
        self.loop: dict[str, Tensor] | None = None  # what the batch's optimisation goes on from
        self.history_start, self.history_end = progress["bytes"]
        self.begin(self.batches[self.batch] if self.batch < len(self.batches) else [])
        if state is not None:
            self.restore(state)
        elif earlier is not None:
            self.cut_logs([0] * len(self.samples))
        for name, text in hydra.items():
            self.write(f".hydra/{name}", text.encode())
        if config.prompts and earlier is None:
            self.write(REQUESTS_FILE, to_jsonl(self.requests).encode())
        settings = yaml.safe_dump(config.to_dict(), allow_unicode=True, sort_keys=False)
        self.write("config.yaml", settings.encode())
        self.write_metadata("running")

    @property
    def is_last_batch(self) -> bool:
        return self.batch + 1 == len(self.batches)

    @property
    def batch_folder(self) -> str:
        """What goes before the names of the files of the batch."""
        return f"batches/{self.batch:03}/" if len(self.batches) > 1 else ""

    @property
    def n_records(self) -> int:
        """How many records of the batch there are."""
        return max((len(sample.history) for sample in self.samples), default=0)

    @property
    def batches(self) -> list[Sequence[Request]]:
        """The requests as they are worked on."""
        n = self.config.n_together
        return [self.requests[at : at + n] for at in range(0, len(self.requests), n)]

    def begin(self, requests: Sequence[Request]) -> None:
        """Take up the samples of a batch."""
        self.samples = [Sample(request) for request in requests]

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
            status = "out of time" if issubclass(kind, OutOfTime) else status
            if status == "failed":
                self.facts["error"] = f"{kind.__name__}: {error}"
        # What the disk refused once it may refuse again: the first refusal is the one to be told.
        refused = suppress(CannotWrite) if isinstance(error, CannotWrite) else nullcontext()
        with signals_deferred(), refused:
            try:
                self.write_results()
                self.write_curves()
            except BaseException as late:
                status = "failed"
                self.facts.setdefault("error", f"{type(late).__name__}: {late}")
                raise
            finally:
                self.write_metadata(status)
        if status == "done":
            remove_state(self.path)

    def finish_batch(self) -> None:
        """Write the results of the batch and take up the next one's samples."""
        with signals_deferred():
            self.write_results()
            self.finished += [describe_sample(sample) for sample in self.samples]
            self.samples = []
            self.write_metadata("running")
            self.batch += 1
            self.loop = None
            self.history_start = self.history_end
            self.begin(self.batches[self.batch] if self.batch < len(self.batches) else [])
            self.write_state({})
            self.flushed = time.monotonic()

    def restore(self, state: State) -> None:
        """Put the samples back to where they were when the state was written."""
        self.round_trip_error = state.progress["round_trip_error"]
        kept = state.progress["samples"]
        sizes = [sample["n_frames"] * state.progress["frame_bytes"] for sample in kept]
        self.cut_logs(sizes or [0] * len(self.samples))
        if not state.tensors:
            return
        self.loop = {
            name.removeprefix(LOOP): tensor
            for name, tensor in state.tensors.items()
            if name.startswith(LOOP)
        }
        history = self.path / HISTORY_FILE
        with history.open("rb") as file:
            file.seek(self.history_start)
            lines = [from_json(line) for line in file]
        for i, (sample, facts) in enumerate(zip(self.samples, kept, strict=True)):
            sample.history = [line for line in lines if line["sample"] == sample.request.number]
            data = bytearray(self.frames_file(sample).read_bytes())
            frames = torch.frombuffer(data, dtype=torch.uint8).view(-1, *state.progress["picture"])
            sample.frames = list(frames)
            sample.stopped = facts["stopped"]
            for name in ("initial", "best", "final"):
                iteration = facts[name]
                line, pair = sample.history[iteration], state.tensors[name][i].clone()
                scores = line["guidance"], line["evaluate"]
                setattr(sample, name, Iterate(iteration, frames[iteration], pair, *scores))

    def cut_logs(self, frame_bytes: Sequence[int]) -> None:
        """Cut off what the logs got after the state was written."""
        cut(self.path / HISTORY_FILE, self.history_end)
        for sample, size in zip(self.samples, frame_bytes, strict=True):
            cut(self.frames_file(sample), size)

    def write_state(self, loop: dict[str, Tensor]) -> None:
        """Write what the run goes on from; `loop` is the optimisation's own state, if any."""
        tensors = {LOOP + name: tensor for name, tensor in loop.items()}
        samples = []
        for sample in self.samples if loop else []:
            iterates = sample.iterates.items()
            named = {name: iterate.iteration for name, iterate in iterates}
            samples.append({**named, "stopped": sample.stopped, "n_frames": len(sample.frames)})
        for name in ("initial", "best", "final") if loop else ():
            pairs = [sample.iterates[name].pair for sample in self.samples]
            tensors[name] = torch.stack([pair for pair in pairs if pair is not None])
        frame = self.samples[0].frames[0] if loop else torch.empty(0)
        progress = {
            "batch": self.batch,
            "finished": len(self.finished),
            "bytes": [self.history_start, self.history_end],
            "round_trip_error": self.round_trip_error,
            "cost": self.cost(),
            "samples": samples,
            "picture": list(frame.shape),
            "frame_bytes": frame.numel(),
        }
        self.write(STATE_FILE, State(progress, tensors).encode())

    def log(self, line: str) -> None:
        """Add a line with the time to doodl.log."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        append(self.path / "doodl.log", f"{now}  {line}\n".encode())

    def add(self, record: Record) -> None:
        """Take in an iteration of every sample that has not stopped."""
        with signals_deferred():
            lines = [
                self.add_to_sample(i, record)
                for i, sample in enumerate(self.samples)
                if not sample.stopped
            ]
            text = "".join(f"{to_json(line)}\n" for line in lines)
            self.history_end = append(self.path / HISTORY_FILE, text.encode())
            for error in record.round_trip_error:
                self.round_trip_error = largest(self.round_trip_error, error)
            if record.state:
                self.write_state(record.state)
            if time.monotonic() - self.flushed > FLUSH_SECONDS:
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
            torch.stack([record.x_0[0][i], record.x_0[1][i]]) if record.x_0 else None,
        )
        if not record.active[i]:
            sample.stopped = f"the loss is NaN at iteration {record.iteration}"
        elif record.stopped:
            sample.stopped = record.stopped[i]
        if record.active[i] or sample.initial is None:
            sample.final = iterate
            self.add_frame(sample, iterate.image)
        if record.best[i] or sample.best is None:
            sample.best = iterate
        sample.initial = sample.initial or iterate
        line = {
            "sample": sample.request.number,
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
            "best": sample.best is iterate,
            "seconds": record.seconds,
        }
        if record.regularisers:
            line["regularisers"] = {name: x[i] for name, x in record.regularisers.items()}
        sample.history.append(line)
        return line

    def add_frame(self, sample: Sample, image: Tensor) -> None:
        """Keep a picture of the trajectory, on disk as well, for a run that goes on from here."""
        sample.frames.append(image)
        make_folder(self.folder(sample), self.path)
        append(self.frames_file(sample), image.contiguous().numpy().tobytes())

    def frames_file(self, sample: Sample) -> Path:
        return self.folder(sample) / FRAMES_FILE

    def folder(self, sample: Sample) -> Path:
        return self.path / "samples" / sample.request.name

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
        """Write every file that sums up the batch so far."""
        self.write_pictures()
        self.write_latents()
        if not any(sample.history for sample in self.samples):
            return
        self.for_each_sample(self.write_trajectory)
        rows = [[caption(sample, name) for name in ("initial", "best")] for sample in self.samples]
        self.write(f"{self.batch_folder}grid.png", to_png(draw_grid(rows), level=FAST))

    def write_curves(self) -> None:
        """Draw the curves of all samples so far, those of finished batches as well."""
        curves = read_curves(self.path)
        samples = zip(self.requests, self.describe(), strict=False)
        best = {request.number: sample["best_iteration"] for request, sample in samples}
        if curves:
            self.write("loss.png", draw_curves(curves, best))

    def for_each_sample(self, write: Callable[[Sample], None]) -> None:
        """Write the samples' files side by side: to encode them is most of a quick run's time."""
        with ThreadPoolExecutor() as pool:
            for _ in pool.map(write, self.samples):
                pass

    def write_trajectory(self, sample: Sample) -> None:
        self.write(f"samples/{sample.request.name}/trajectory.webp", to_webp(sample.frames))

    def write_latents(self) -> None:
        for sample in self.samples:
            pairs = {}
            for name, iterate in sample.iterates.items():
                kind, pair = "x_T", iterate.pair
                if name != "initial" and iterate.x_0 is not None:
                    kind, pair = "x_0", iterate.x_0
                if pair is not None:
                    # safetensors refuses one tensor twice, and other layouts
                    pairs[f"{kind}_{name}"] = pair.clone().contiguous()
            if pairs:
                self.write(f"samples/{sample.request.name}/latents.safetensors", save(pairs))

    def write_pictures(self) -> None:
        # A picture made again elsewhere, alone or beside others, is the same file.
        settings = {k: v for k, v in self.config.to_dict().items() if k not in OF_THE_SET}
        self.for_each_sample(partial(self.write_changed_pictures, settings=settings))

    def write_changed_pictures(self, sample: Sample, settings: dict[str, Any]) -> None:
        """Write those of a sample's pictures that have changed since they were last written."""
        changed = {
            name: iterate
            for name, iterate in sample.iterates.items()
            if sample.written.get(name) is not iterate
        }
        if not changed:
            return
        request = sample.request
        words = {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
        text = {
            **words,
            "seed": str(request.seed),
            "model": self.config.model.name,
            "settings": to_json({**settings, **words, "seed": request.seed}),
        }
        for name, iterate in changed.items():
            picture = to_png(to_image(iterate.image), text)
            self.write(f"samples/{request.name}/{name}.png", picture)
        sample.written |= changed

    def write_metadata(self, status: str) -> None:
        samples = self.describe()
        metadata = {
            "status": status,
            **self.facts,
            "n_samples": len(self.requests),
            "n_finished": len(self.requests) if status == "done" else len(self.finished),
            "seeds": [sample["seed"] for sample in samples],
            "prompts": [sample["prompt"] for sample in samples],
            "round_trip_error": self.round_trip_error,
            "cost": self.cost(),
            "samples": samples,
        }
        self.write("metadata.json", f"{to_json(metadata, indent=2)}\n".encode())

    def describe(self) -> list[dict[str, Any]]:
        """Return the entries in metadata.json of the samples so far."""
        return [*self.finished, *map(describe_sample, self.samples)]

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the directory, whole or not at all."""
        path = self.path / name
        make_folder(path.parent, self.path)
        write_whole(path, content)


def remove_state(path: Path) -> None:
    """Remove from the directory of a run that is done what it would have gone on from."""
    with writing(path):
        (path / STATE_FILE).unlink(missing_ok=True)
        for frames in path.glob(f"samples/*/{FRAMES_FILE}"):
            frames.unlink()


def describe_sample(sample: Sample) -> dict[str, Any]:
    """Return a sample's entry in metadata.json."""
    iterates = sample.iterates
    return {
        **({} if sample.request.name.isdigit() else {"id": sample.request.name}),
        "prompt": sample.request.prompt,
        "seed": sample.request.seed,
        "best_iteration": sample.best.iteration if sample.best else None,
        **{name: iterate.guidance for name, iterate in iterates.items()},
        "evaluate": {name: iterate.evaluate for name, iterate in iterates.items()},
        "stopped": sample.stopped,
    }


def caption(sample: Sample, name: str) -> tuple[Image.Image, list[str]]:
    """Return a picture for the grid and the lines below it."""
    iterate = sample.iterates[name]
    scores = [f"{term} {score:.4g}" for term, score in iterate.guidance.items()]
    where = f"seed {sample.request.seed}, {name}"
    if name == "best":
        where += f" (iteration {iterate.iteration})"
    return to_image(iterate.image), [where, *scores]


def to_image(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def to_png(image: Image.Image, text: dict[str, str] | None = None, level: int = 6) -> bytes:
    """Encode a picture, with international text chunks; `level` of zlib, 0 to 9."""
    info = PngInfo()
    for name, value in (text or {}).items():
        info.add_itxt(name, value)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, compress_level=level)
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


def from_json(line: str | bytes) -> Any:
    """Decode what `to_json` encoded, null as NaN."""
    return nan_for_null(json.loads(line))


def nan_for_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: nan_for_null(v) for name, v in value.items()}
    return math.nan if value is None else value


def finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def largest(a: float, b: float) -> float:
    """Return the larger number, ignoring NaN."""
    return b if math.isnan(a) else a if math.isnan(b) else max(a, b)
