"""The two drawings of a run: its pictures side by side with captions, and its curves."""

import io
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

SMALLEST_SIDE = 256  # smaller pictures are enlarged
GAP = 12
FONT_SIZE = 13
LINE_HEIGHT = 18
PANEL_INCHES = (3.6, 2.8)


def enlarge(image: Image.Image) -> Image.Image:
    """Enlarge a small picture by a whole factor, pixel by pixel."""
    factor = max(1, SMALLEST_SIDE // image.width)
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def draw_grid(rows: Sequence[Sequence[tuple[Image.Image, Sequence[str]]]]) -> Image.Image:
    """Draw rows of pictures, each with the lines of its caption below."""
    tiles = [[(enlarge(image), lines) for image, lines in row] for row in rows]
    width, height = tiles[0][0][0].size
    height += LINE_HEIGHT * max(len(lines) for row in tiles for _, lines in row)
    n_columns = max(len(row) for row in tiles)
    size = (n_columns * (width + GAP) + GAP, len(tiles) * (height + GAP) + GAP)
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(FONT_SIZE)
    for j, row in enumerate(tiles):
        for i, (image, lines) in enumerate(row):
            x, y = GAP + i * (width + GAP), GAP + j * (height + GAP)
            grid.paste(image, (x, y))
            for k, line in enumerate(lines):
                draw.text((x, y + image.height + 2 + k * LINE_HEIGHT), line, "black", font)
    return grid


def draw_curves(histories: Sequence[Sequence[dict[str, Any]]], best: Sequence[int]) -> bytes:
    """Draw the lines of history.jsonl, a curve a sample, and encode the figure as PNG.

    The top row is what is optimised, the loss and each guidance's score; the bottom row is the
    held-out scores. A dot marks each sample's best iteration.
    """
    from matplotlib.figure import Figure  # 0.5 s, once a run has something to draw

    first = histories[0][0]
    optimised = [("loss", None, "loss"), *(("guidance", name, name) for name in first["guidance"])]
    held_out = [
        ("evaluate", name, f"{name} (held out)")
        for name in first["evaluate"]
        if name not in first["guidance"]
    ]
    panels = [optimised, held_out] if held_out else [optimised]
    n_columns = max(map(len, panels))
    width, height = PANEL_INCHES[0] * n_columns, PANEL_INCHES[1] * len(panels)
    figure = Figure(figsize=(width, height), dpi=120)
    axes = figure.subplots(len(panels), n_columns, squeeze=False)
    # Margins that are given, not found: to find them, matplotlib draws everything once more.
    left, right, top, bottom = 0.55 / width, 1 - 0.1 / width, 1 - 0.3 / height, 0.45 / height
    figure.subplots_adjust(left, bottom, right, top, wspace=0.2, hspace=0.42)
    for row, row_axes in zip(panels, axes, strict=True):
        for axis in row_axes[len(row) :]:
            axis.set_axis_off()
        for (term, name, title), axis in zip(row, row_axes, strict=False):
            for i, (lines, best_iteration) in enumerate(zip(histories, best, strict=True)):
                values = {
                    line["iteration"]: line[term] if name is None else line[term][name]
                    for line in lines
                }
                color = f"C{i % 10}"
                label = f"sample {lines[0]['sample']}"
                axis.plot(list(values), list(values.values()), color, label=label, lw=1.2)
                axis.plot(best_iteration, values.get(best_iteration, math.nan), "o", color=color)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("iteration", fontsize=8)
            axis.locator_params(nbins=5)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.3)
    if len(histories) > 1:
        axes[0, 0].legend(fontsize=8, loc="upper right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
