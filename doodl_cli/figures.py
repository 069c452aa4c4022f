"""The two drawings of a run: its pictures side by side with captions, and its curves."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from doodl_cli.history import HELD_OUT, Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALLEST_SIDE = 256  # smaller pictures are enlarged
GAP = 12
FONT_SIZE = 13
LINE_HEIGHT = 1.4  # in font sizes
PANEL_INCHES = (3.6, 2.8)
N_COLOURS = 10  # samples that are told apart


def enlarge(image: Image.Image) -> Image.Image:
    """Enlarge a small picture by a whole factor, pixel by pixel."""
    factor = max(1, SMALLEST_SIDE // image.width)
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def draw_grid(
    rows: Sequence[Sequence[tuple[Image.Image, Sequence[str]]]], font_size: int = FONT_SIZE
) -> Image.Image:
    """Draw rows of pictures, each with the lines of its caption below, of `font_size` pixels.

    A line that is too long goes on below the next picture.
    """
    tiles = [[(enlarge(image), lines) for image, lines in row] for row in rows]
    width, height = tiles[0][0][0].size
    line_height = round(LINE_HEIGHT * font_size)
    height += line_height * max(len(lines) for row in tiles for _, lines in row)
    n_columns = max(len(row) for row in tiles)
    size = (n_columns * (width + GAP) + GAP, len(tiles) * (height + GAP) + GAP)
    grid = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(font_size)
    for j, row in enumerate(tiles):
        for i, (image, lines) in enumerate(row):
            x, y = GAP + i * (width + GAP), GAP + j * (height + GAP)
            grid.paste(image, (x, y))
            for k, line in enumerate(lines):
                draw.text((x, y + image.height + 2 + k * line_height), line, "black", font)
    return grid


def draw_curves(curves: Mapping[int, Curves], best: Mapping[int, int | None]) -> bytes:
    """Draw a curve a sample, by the samples' numbers, and encode the figure as PNG.

    The top row is what is optimised, the loss and each guidance's score; the bottom row is the
    held-out scores. A dot marks each sample's `best` iteration. Many samples are all grey, with
    their mean.
    """
    from matplotlib.figure import Figure  # 0.5 s, once a run has something to draw

    names = dict.fromkeys(["loss", *(name for of_sample in curves.values() for name in of_sample)])
    optimised = [name for name in names if not name.startswith(HELD_OUT)]
    held_out = [name for name in names if name.startswith(HELD_OUT)]
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
        for name, axis in zip(row, row_axes, strict=False):
            drawn = {number: dict(found.get(name, [])) for number, found in curves.items()}
            if len(drawn) > N_COLOURS:
                plot_mean(axis, list(drawn.values()))
            else:
                plot_each(axis, drawn, best)
            title = name.removeprefix(HELD_OUT)
            axis.set_title(title if title == name else f"{title} (held out)", fontsize=10)
            axis.set_xlabel("iteration", fontsize=8)
            axis.locator_params(nbins=5)
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.tick_params(labelsize=8)
            axis.grid(alpha=0.3)
    if len(curves) > 1:
        axes[0, 0].legend(fontsize=8, loc="upper right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def plot_each(
    axis: "Axes", curves: Mapping[int, Mapping[int, float]], best: Mapping[int, int | None]
) -> None:
    """Plot a few curves, iteration to value, each in its own colour."""
    for i, (number, curve) in enumerate(curves.items()):
        color = f"C{i}"
        axis.plot(list(curve), list(curve.values()), color, label=f"sample {number}", lw=1.2)
        at = best.get(number)
        if at is not None:
            axis.plot(at, curve.get(at, math.nan), "o", color=color)


def plot_mean(axis: "Axes", curves: Sequence[Mapping[int, float]]) -> None:
    """Plot any number of curves as one grey line, and the mean of those that reach so far."""
    x = [at for curve in curves for at in (*curve, math.nan)]  # NaN parts the curves
    y = [value for curve in curves for value in (*curve.values(), math.nan)]
    axis.plot(x, y, color="0.8", lw=0.6)
    reached: dict[int, list[float]] = {}
    for curve in curves:
        for at, value in curve.items():
            reached.setdefault(at, []).append(value)
    means = {at: sum(values) / len(values) for at, values in sorted(reached.items())}
    label = f"mean of {len(curves)} samples"
    axis.plot(list(means), list(means.values()), "C0.-", label=label, lw=1.5)
