"""The files of a bench: tables, curves, contact sheets, and a page that holds them all."""

import base64
import html
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image

from doodl_cli.bench.collect import Point, Results
from doodl_cli.bench.runs import Part
from doodl_cli.bench.tables import (
    Table,
    describe,
    gains_table,
    means_table,
    title,
    write_comparisons,
    write_markdown,
    write_samples,
    write_seconds,
)
from doodl_cli.figures import draw_grid
from doodl_cli.files import write_whole
from doodl_cli.pictures import read_picture

PAGE = "bench.html"
N_SHOWN = 12  # prompts on a contact sheet
N_LEVELS = 60  # of calls, at which curves are averaged
CAPTION_SIZE = 22  # pixels: a sheet is wide, and mostly seen smaller
LINE_LENGTH = 24  # letters of that size below a picture


def write_report(path: Path, results: Results) -> None:
    """Write every file."""
    texts = {
        "results.csv": write_samples(results),
        "comparisons.csv": write_comparisons(results),
        "seconds.csv": write_seconds(results),
        "table.md": write_markdown(results),
    }
    for name, text in texts.items():
        write_whole(path / name, text.encode())
    pictures: dict[str, bytes] = {}
    for part in results.parts:
        pictures[f"curves-{part.name}.png"] = draw_curves(results, part)
        pictures[f"sheet-{part.name}.webp"] = draw_sheet(results, part)
    for name, data in pictures.items():
        write_whole(path / name, data)
    write_whole(path / PAGE, draw_page(results, pictures).encode())


def draw_curves(results: Results, part: Part) -> bytes:
    """Draw the optimised and the held-out score against the calls spent, the mean over samples."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys([part.guidance, part.judge]))
    figure = Figure(figsize=(5 * len(names), 3.6), dpi=110, layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for name, axis in zip(names, axes, strict=True):
        for k, method in enumerate(part.methods):
            curves = [sample.curve for sample in results.of(part.name, method)]
            calls, means = average_curves(curves, name)
            marker = "o" if len({len(curve) for curve in curves} - {1, 2}) == 0 else ""
            axis.plot(calls, means, marker=marker, color=f"C{k}", label=method, lw=1.4, ms=4)
        axis.set_title(title(name, part), fontsize=10)
        axis.set_xlabel("network calls a sample", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def average_curves(curves: Sequence[Sequence[Point]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return levels of calls and the mean over samples of the score that each has reached there."""
    curves = [[p for p in curve if name in p.scores] for curve in curves]
    curves = [curve for curve in curves if curve]
    if not curves:
        return np.empty(0), np.empty(0)
    ends = sorted({point.calls for curve in curves for point in curve})
    levels = np.array(ends if len(ends) <= N_LEVELS else np.linspace(ends[0], ends[-1], N_LEVELS))
    reached = []
    for curve in curves:
        calls = np.array([point.calls for point in curve])
        at = np.clip(np.searchsorted(calls, levels + 1e-9) - 1, 0, len(curve) - 1)
        reached.append([curve[i].scores[name] for i in at])
    return levels, np.mean(reached, axis=0)


def draw_sheet(results: Results, part: Part) -> bytes:
    """Draw the first prompts, evenly chosen, a row each: what every method makes of one noise.

    Pictures have the judge's score; a row begins with the reference picture, if it has one.
    """
    rows = []
    n = len(part.rows)
    first = results.bench.seeds[0]
    for number in sorted({round(k * (n - 1) / max(N_SHOWN - 1, 1)) for k in range(N_SHOWN)}):
        row = part.rows[number]
        tiles = [(read_tile(row.image), "reference")] if row.image else []
        for method in part.methods:
            for sample in results.of(part.name, method):
                if (sample.number, sample.seed) == (number, first):
                    score = sample.scores.get(part.judge)
                    shown = "" if score is None else f"  {score:.3g}"
                    tiles.append((read_tile(sample.folder / "best.png"), f"{method}{shown}"))
        # The prompt goes on below the pictures after the first.
        title = wrap(f"{row.unit} ({part.judge})", LINE_LENGTH * len(tiles))
        blank = [""] * len(title)
        rows.append(
            [(tile, [*(blank if k else title), below]) for k, (tile, below) in enumerate(tiles)]
        )
    sheet = draw_grid(rows, CAPTION_SIZE)
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=80)
    return buffer.getvalue()


def read_tile(path: str | Path) -> Image.Image:
    """Return a picture as it is on a sheet."""
    picture = read_picture(str(path), "image")
    picture.thumbnail((256, 256))
    return picture


def draw_page(results: Results, pictures: dict[str, bytes]) -> str:
    """Return everything as one page that needs nothing but itself."""
    sections = []
    for part in results.parts:
        tables = [means_table(results, part), gains_table(results, part)]
        images = [
            f'<img src="data:image/{name.rpartition(".")[2]};base64,'
            f'{base64.b64encode(data).decode("ascii")}" alt="{html.escape(name)}">'
            for name, data in pictures.items()
            if name.partition("-")[2].rpartition(".")[0] == part.name
        ]
        body = "\n".join([*(to_html(table) for table in tables), *images])
        sections.append(f"<h2>{html.escape(part.name)}</h2>\n{body}")
    seconds = write_seconds(results).splitlines()
    sections.append(f"<h2>seconds</h2>\n{to_html([line.split(',') for line in seconds])}")
    template = resources.files("doodl_cli.bench").joinpath("page.html").read_text("utf-8")
    for mark, text in {
        "{{title}}": html.escape(f"{results.bench.suite.name}, {results.bench.budget:g} calls"),
        "{{about}}": html.escape(describe(results)),
        "{{body}}": "\n".join(sections),  # last, so that no mark in a prompt is filled in
    }.items():
        template = template.replace(mark, text)
    return template


def to_html(table: Table) -> str:
    if not table:
        return ""
    head, *rows = [[html.escape(cell) for cell in row] for row in table]
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"
