"""What a run says while it goes on, and when it is over."""

import math
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from doodl_cli.errors import CannotWrite, OutOfTime, Terminated
from doodl_cli.optimize import Record
from doodl_cli.run_directory import RunDirectory

LINE_SECONDS = 10.0
MANY = 16  # samples, whose means say more than a table


@contextmanager
def logged(directory: RunDirectory) -> Iterator[None]:
    """Say in doodl.log when the work begins and how it ends."""
    directory.log(f"{len(directory.requests)} samples on {directory.config.device}")
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        directory.log("interrupted")
        raise
    except OutOfTime as error:
        directory.log(f"{error} are over")
        raise
    except CannotWrite:
        raise  # nor could the log be
    except Exception:
        directory.log(traceback.format_exc().rstrip())
        raise
    directory.log("done")


def follow(records: Iterable[Record], n_iters: int, directory: RunDirectory) -> Iterator[Record]:
    """Yield a batch's records, showing the iteration, the loss and the time left on stderr.

    A bar on a terminal; elsewhere the lines that go to doodl.log as well: one at the start, at the
    end and every few seconds between.
    """
    n_batches = len(directory.batches)
    batch = f"batch {directory.batch + 1}/{n_batches}  " if n_batches > 1 else ""
    console = Console(stderr=True)
    columns = (
        TextColumn(f"{batch}iteration"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    shown = console.is_terminal
    with Progress(*columns, console=console) if shown else nullcontext() as progress:
        task = progress.add_task("", total=n_iters, loss="-") if progress else None
        for record, line in write_lines(records, n_iters):
            if line is not None:
                directory.log(f"{batch}{line}")
            if progress and task is not None:
                loss = f"{mean_loss(record):.4g}"
                progress.update(task, completed=record.iteration, loss=loss)
            elif line is not None:
                print(f"{batch}{line}", file=sys.stderr, flush=True)
            yield record
    for sample in directory.samples:
        if sample.stopped:
            request = sample.request
            line = f"sample {request.name} (seed {request.seed}) stopped: {sample.stopped}"
            directory.log(line)
            print(line, file=sys.stderr)


def write_lines(records: Iterable[Record], n_iters: int) -> Iterator[tuple[Record, str | None]]:
    """Yield records with a line where one is due."""
    began = said = time.monotonic()
    first = None
    for record in records:
        now = time.monotonic()
        first = record.iteration if first is None else first
        line = None
        if record.iteration in (first, n_iters) or now - said > LINE_SECONDS:
            said = now
            line = f"iteration {record.iteration}/{n_iters}  loss {mean_loss(record):.4g}"
            if first < record.iteration < n_iters:
                done, left = record.iteration - first, n_iters - record.iteration
                line += f"  {(now - began) / done * left:.0f} s left"
        yield record, line


def mean_loss(record: Record) -> float:
    """Return the mean loss of the samples that have not stopped."""
    losses = [x for x, active in zip(record.loss, record.active, strict=True) if active]
    return sum(losses) / len(losses) if losses else math.nan


def summarize(directory: RunDirectory) -> None:
    """Print the scores at the start and at the best, and the folder on the last line.

    Those of each sample, or their means where there are many.
    """
    samples = [sample for sample in directory.describe() if sample["best_iteration"] is not None]
    if samples:
        print_scores(samples)
    print(directory.path)


def print_scores(samples: list[dict[str, Any]]) -> None:
    first = samples[0]
    held_out = [name for name in first["evaluate"]["initial"] if name not in first["initial"]]
    titles = [f"{name} (held out)" for name in held_out]
    table = Table("seed", "iteration", *first["initial"], *titles)
    if len(samples) > MANY:
        for name in ("initial", "best"):
            columns = zip(*(list_scores(sample, name, held_out) for sample in samples), strict=True)
            means = (f"{sum(column) / len(samples):.4g}" for column in columns)
            table.add_row(f"{len(samples)} samples", f"({name}, mean)", *means)
        Console().print(table)
        return
    for sample in samples:
        for name in ("initial", "best"):
            iteration = sample["best_iteration"] if name == "best" else 0
            table.add_row(
                str(sample["seed"]) if name == "initial" else "",
                f"{iteration} ({name})",
                *(f"{score:.4g}" for score in list_scores(sample, name, held_out)),
                end_section=name == "best",
            )
    Console().print(table)


def list_scores(sample: dict[str, Any], name: str, held_out: list[str]) -> list[float]:
    """Return an iterate's scores and held-out scores; NaN where metadata.json has null."""
    scores = [*sample[name].values(), *(sample["evaluate"][name][key] for key in held_out)]
    return [math.nan if score is None else score for score in scores]
