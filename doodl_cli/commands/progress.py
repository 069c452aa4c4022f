"""What a run says while it goes on, and when it is over."""

import math
import sys
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from doodl_cli.optimize import Record
from doodl_cli.run_directory import RunDirectory

LINE_SECONDS = 10.0


def follow(records: Iterable[Record], n_iters: int) -> Iterator[Record]:
    """Yield records, showing the iteration, the loss and the time left on stderr.

    A bar on a terminal; elsewhere a line at the start, at the end and every few seconds between.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from follow_in_lines(records, n_iters)
        return
    columns = (
        TextColumn("iteration"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=n_iters, loss="-")
        for record in records:
            progress.update(task, completed=record.iteration, loss=f"{mean_loss(record):.4g}")
            yield record


def follow_in_lines(records: Iterable[Record], n_iters: int) -> Iterator[Record]:
    began = said = time.monotonic()
    for record in records:
        now = time.monotonic()
        if record.iteration in (0, n_iters) or now - said > LINE_SECONDS:
            said = now
            line = f"iteration {record.iteration}/{n_iters}  loss {mean_loss(record):.4g}"
            if 0 < record.iteration < n_iters:
                left = (now - began) / record.iteration * (n_iters - record.iteration)
                line += f"  {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
        yield record


def mean_loss(record: Record) -> float:
    """Return the mean loss of the samples that have not stopped."""
    losses = [x for x, active in zip(record.loss, record.active, strict=True) if active]
    return sum(losses) / len(losses) if losses else math.nan


def summarize(directory: RunDirectory) -> None:
    """Print each sample's scores at the start and at its best, and the folder on the last line."""
    first = directory.samples[0].iterates["initial"]
    held_out = [name for name in first.evaluate if name not in first.guidance]
    titles = [f"{name} (held out)" for name in held_out]
    table = Table("seed", "iteration", *first.guidance, *titles)
    for sample in directory.samples:
        for name in ("initial", "best"):
            iterate = sample.iterates[name]
            scores = [*iterate.guidance.values(), *(iterate.evaluate[name] for name in held_out)]
            table.add_row(
                str(sample.seed) if name == "initial" else "",
                f"{iterate.iteration} ({name})",
                *(f"{score:.4g}" for score in scores),
                end_section=name == "best",
            )
    Console().print(table)
    print(directory.path)
