"""report.html: pictures, curves and a table to sort and to filter, all inside one file."""

import base64
import html
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from doodl_cli.config import show
from doodl_cli.history import HELD_OUT
from doodl_cli.report.collect import Row

SIDE = 256  # larger pictures are embedded smaller
FEW = 100  # rows; beyond, small pictures are compressed like the larger ones, to a fifth
WIDTH, HEIGHT = 150, 48  # of a curve


def draw_page(rows: Sequence[Row], settings: Sequence[str]) -> str:
    """Return the page; `settings` are the names of those that get a column."""
    scores = list(dict.fromkeys(name for row in rows for name in row.scores))
    titles = ["run", "sample", "status", "prompt", "seed", "initial", "best", "curves"]
    titles.append("best\niteration")
    for name in scores:
        title = f"{name.removeprefix(HELD_OUT)} (held out)" if name.startswith(HELD_OUT) else name
        titles += [f"{title}\n{word}" for word in ("initial", "best", "gain")]
    titles += settings
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    exact = len(rows) <= FEW
    body = "\n".join(draw_row(row, scores, settings, exact) for row in rows)
    n_runs = len({row.run for row in rows})
    template = resources.files("doodl_cli.report").joinpath("page.html").read_text("utf-8")
    for mark, text in {
        "{{count}}": f"{count(len(rows), 'sample')} of {count(n_runs, 'run')}",
        "{{head}}": head,
        "{{body}}": body,  # last, so that no mark in a prompt is filled in
    }.items():
        template = template.replace(mark, text)
    return template


def draw_row(row: Row, scores: Sequence[str], settings: Sequence[str], exact: bool) -> str:
    status = html.escape(row.status)
    if row.cause:
        status += f'<div class="cause">{html.escape(row.cause)}</div>'
    curves = (draw_curve(name, points, row) for name, points in row.curves.items())
    cells = [
        cell(f'<div class="run">{html.escape(str(row.run))}</div>', str(row.run)),
        cell(html.escape(row.folder.name if row.folder != row.run else "")),
        cell(status, row.status),
        cell(f'<div class="prompt">{html.escape(row.prompt)}</div>', row.prompt),
        number(row.seed),
        cell(embed(row.folder / "initial.png", exact)),
        cell(embed(row.folder / "best.png", exact)),
        cell(f'<div class="curves">{"".join(curves)}</div>'),
        number(row.best_iteration),
    ]
    for name in scores:
        values = row.scores.get(name, {})
        first, best = values.get("initial"), values.get("best")
        gain = None if first is None or best is None else best - first
        cells += [number(first), number(best), number(gain)]
    for name in settings:
        value = row.settings.get(name)
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        cells.append(number(value) if plain else cell(html.escape(show(value))))
    failed = ' class="failed"' if row.status not in ("done", "running") else ""
    return f"<tr{failed}>{''.join(cells)}</tr>"


def count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def cell(content: str, order: str | None = None) -> str:
    """Return a cell, sorted by `order` or by its text."""
    by = "" if order is None else f' data-by="{html.escape(order)}"'
    return f"<td{by}>{content}</td>"


def number(value: Any) -> str:
    """Return a cell that is sorted by its number; None is empty."""
    if value is None:
        return "<td></td>"
    text = str(value) if isinstance(value, int) else f"{value:.4g}"
    return f'<td class="n" data-by="{value!r}">{text}</td>'


def embed(path: Path, exact: bool) -> str:
    """Return a picture as an element, "" where there is none that can be read."""
    try:
        return f'<img src="{encode(path, exact)}" alt="{path.stem}">'
    except OSError:
        return ""


def encode(path: Path, exact: bool = True) -> str:
    """Return a picture as a data URL, pixels alone, a small one as it is if it is to be `exact`.

    Raises OSError where it cannot be read.
    """
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    buffer = io.BytesIO()
    kind = "png" if exact and max(picture.size) <= SIDE else "webp"
    picture.thumbnail((SIDE, SIDE))
    picture.save(buffer, kind, quality=85)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{kind};base64,{data}"


def draw_curve(name: str, points: Sequence[tuple[int, float]], row: Row) -> str:
    """Return a curve as SVG with its name, first and last value; a dot is at the best iteration."""
    values = [value for _, value in points]
    low, high, last = min(values), max(values), max(points[-1][0], 1)

    def place(iteration: int, value: float) -> tuple[float, float]:
        up = (value - low) / (high - low) if high > low else 0.5
        return 3 + (WIDTH - 6) * iteration / last, HEIGHT - 3 - (HEIGHT - 6) * up

    drawn = [*points[:: max(1, len(points) // WIDTH)], points[-1]]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in drawn))
    best = "".join(
        '<circle cx="{:.1f}" cy="{:.1f}" r="2.5"/>'.format(*place(*point))
        for point in points
        if point[0] == row.best_iteration
    )
    title = f"{html.escape(name.removeprefix(HELD_OUT))} {values[0]:.4g} → {values[-1]:.4g}"
    return (
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}"><polyline points="{line}"/>{best}</svg>'
        f"<figcaption>{title}</figcaption></figure>"
    )
