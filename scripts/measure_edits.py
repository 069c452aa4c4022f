"""Measure inversion and edits on real pictures: drawings that the embedded model has not seen.

Each setting is a line of `doodl run` overrides, by default the preset configs/experiment/
emoji_edit.yaml. Every drawing is inverted, rendered again and edited on its own, and measured by

    floor       PSNR in dB of the auto-encoder alone, decode(encode(x)), against the drawing
    round trip  the same of the inverted and rendered drawing, minus the floor
    ratio       colourfulness of the edit / of the drawing rendered again, by the pixel formula
    similarity  cosine between edit and drawing for the held-out pair B, which never guides
    random      the same between a drawing and the other drawings, for comparison
    nearest     share of the edits that are closer to their own drawing than to any other

    python scripts/measure_edits.py --out build/edits.jsonl
    python scripts/measure_edits.py --n 4 "experiment=emoji_edit optimizer.clip=1e-2"

One line of JSON a setting, and with `--sheet` a picture of all drawings before and after.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from doodl_cli.commands import task
from doodl_cli.commands.application import composer, resolve
from doodl_cli.commands.start import invert_picture, reconstruct
from doodl_cli.config import Config, GuidanceSettings, read_config
from doodl_cli.figures import draw_grid
from doodl_cli.guidance import build_evaluation, build_guidance
from doodl_cli.models.latent_model import LatentModel
from doodl_cli.optimize import optimize
from doodl_cli.optimize.assess import from_8_bit
from doodl_cli.pictures import psnr
from doodl_cli.requests import list_requests
from doodl_cli.run_directory import to_image

sys.path.append(str(Path(__file__).parent / "embedded"))
from pictures import (  # type: ignore[import-not-found]
    choose_device,
    compose_plain,
    load_drawings,
    unseen_indices,
)

PRESET = "experiment=emoji_edit"


def read_drawings(folder: Path, n: int) -> list[Image.Image]:
    """Return `n` of the 200 unseen drawings, evenly spread, over white."""
    drawings, rows, _ = load_drawings(folder, "cpu")
    indices = unseen_indices(rows)
    indices = [indices[k * len(indices) // n] for k in range(n)]
    return [to_image((255 * x).round().byte()) for x in compose_plain(drawings, indices)]


def edit(drawing: Image.Image, config: Config, model: LatentModel) -> dict:
    """Invert, render and edit one drawing; return its figures, and its pictures (3, h, w)."""
    guidance = build_guidance(config.guidance, model)
    evaluation = build_evaluation({"colourfulness": GuidanceSettings(1.0, 0)}, {}, model)
    problem = task.make_problem(config, model, list_requests(config), guidance, evaluation)
    inversion = invert_picture(drawing, config, model, problem)
    found = reconstruct(inversion, problem)
    for record in optimize(problem, task.make_settings(config), inversion.x_T):
        (colourful,) = record.evaluate["colourfulness"]
        if record.iteration == 0:
            initial = colourful
        if record.best[0]:
            best, edited, iteration = colourful, record.images[0], record.iteration
    floor = psnr(found.autoencoded, found.original)
    return {
        "floor": floor,
        "round_trip": psnr(found.rendered[0], found.original) - floor,
        "initial": initial,
        "best": best,
        "ratio": best / initial,
        "best_iteration": iteration,
        "pictures": (found.original, found.rendered[0], edited),
    }


@torch.no_grad()
def compare(before: Tensor, after: Tensor, model: LatentModel) -> tuple[list, list, float]:
    """Return pair B's similarity of each edit to its drawing, of each drawing to the others,
    and the share of edits that are nearest to their own."""
    x, y = (
        model.clip_b.embed_images(from_8_bit(images).to(model.device)).cpu()
        for images in (before, after)
    )
    between, own = y @ x.T, (y * x).sum(1)
    others = ((x @ x.T).sum(1) - 1) / (len(x) - 1)
    nearest = (between.argmax(1) == torch.arange(len(x))).float().mean().item()
    return own.tolist(), others.tolist(), nearest


def measure(
    config: Config, model: LatentModel, drawings: list[Image.Image]
) -> tuple[dict, list[dict]]:
    """Edit every drawing; return the summary and each one's figures."""
    began = time.time()
    found = [edit(drawing, config, model) for drawing in drawings]
    before, _, after = (
        torch.stack(images) for images in zip(*(x["pictures"] for x in found), strict=True)
    )
    own, others, nearest = compare(before, after, model)
    for figures, similarity in zip(found, own, strict=True):
        figures["similarity"] = similarity
    ratios = [figures["ratio"] for figures in found]
    summary = {
        "n": len(found),
        "floor_db": statistics.mean(figures["floor"] for figures in found),
        "round_trip_db_worst": max((figures["round_trip"] for figures in found), key=abs),
        "ratio_median": statistics.median(ratios),
        "ratio_least": min(ratios),
        "share_1.2": sum(ratio >= 1.2 for ratio in ratios) / len(ratios),
        "similarity": statistics.mean(own),
        "similarity_least": min(own),
        "random": statistics.mean(others),
        "nearest": nearest,
        "seconds_each": (time.time() - began) / len(found),
    }
    return {name: round(value, 4) for name, value in summary.items()}, found


def draw_sheet(found: list[dict]) -> Image.Image:
    """Draw every drawing as it was, rendered again, and edited; two drawings a row."""
    tiles = []
    for figures in found:
        captions = (
            f"{figures['initial']:.0f}",
            f"{figures['floor']:.1f} {figures['round_trip']:+.2f} dB",
            f"x{figures['ratio']:.2f}, B {figures['similarity']:.2f}",
        )
        for image, line in zip(figures["pictures"], captions, strict=True):
            tiles.append((to_image(image), [line]))
    return draw_grid([tiles[k : k + 6] for k in range(0, len(tiles), 6)])


def main() -> None:
    """Measure every setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", default=[PRESET], help="overrides of `doodl run`")
    parser.add_argument("--data", type=Path, default=Path("build/emoji"))
    parser.add_argument("--n", type=int, default=10, help="how many drawings")
    parser.add_argument("--out", type=Path, help="a file to which a line a setting is added")
    parser.add_argument("--sheet", type=Path, help="a picture, of the last setting")
    args = parser.parse_args()
    device = torch.device(choose_device())
    drawings = read_drawings(args.data, args.n)
    with composer(None) as compose:
        composed = [
            resolve(compose("run", [*line.split(), "init.path=.", f"device={device}"]))
            for line in args.settings
        ]
    configs = [replace(read_config(values), seed=[0]) for values in composed]
    model = task.load(configs[0], device)
    for line, config in zip(args.settings, configs, strict=True):
        summary, found = measure(config, model, drawings)
        each = ("floor", "round_trip", "initial", "best", "best_iteration", "similarity")
        result = {"settings": line, **summary} | {
            name: [round(figures[name], 3) for figures in found] for name in each
        }
        print(json.dumps({"settings": line, **summary}), flush=True)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with args.out.open("a") as file:
                file.write(json.dumps(result) + "\n")
        if args.sheet:
            draw_sheet(found).save(args.sheet, optimize=True)


if __name__ == "__main__":
    main()
