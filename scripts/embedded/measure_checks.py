"""Measure how often the checks read a half of a picture right, where it is known what is in it.

Two drawings of the classes stand side by side or one above the other, as they are and decoded from
latents with noise. Of drawings that one classifier knows and of those that neither does: the share
of halves whose class is read right by each classifier, and by both.

    python scripts/embedded/measure_checks.py --data build/emoji [--n 400]
"""

import argparse
from pathlib import Path
from random import Random

import numpy as np
import torch
from hardening import load_vae, smear
from pictures import (
    ABOVE,
    ASSETS,
    BESIDE,
    Composer,
    Examples,
    choose_device,
    draw_background,
    load_drawings,
)
from torch import Tensor
from train_classifier import class_indices

from doodl_cli.bench.checks import PLACES, cut_view, read_views
from doodl_cli.models.latent_model import load_model

DRAWINGS = {
    "of half A": {"split": "train", "class_half": "A"},
    "of half B": {"split": "train", "class_half": "B"},
    "of neither": {"split": "unseen"},
}
NOISES = (0.0, 0.3, 0.6)  # of latents whose standard deviation is 1


def draw_scenes(found: list[int], means: np.ndarray, n: int, rng: Random) -> Examples:
    """Draw `n` pictures of two drawings each."""
    items, layouts = np.full((n, 4), -1, np.int64), np.zeros(n, np.int64)
    backgrounds, no = np.zeros((n, 3), np.uint8), np.zeros(n, bool)
    for i in range(n):
        pair = [rng.choice(found), rng.choice(found)]
        items[i, :2], layouts[i] = pair, rng.choice((BESIDE, ABOVE))
        _, backgrounds[i] = draw_background(rng, means[pair])
    return Examples(items, layouts, backgrounds, no, no, [""] * n)


def cut_halves(pictures: Tensor, layouts: np.ndarray) -> list[Tensor]:
    """Return what the checks look at in pictures in [0, 1], two views each."""
    places = {BESIDE: PLACES["sides"], ABOVE: ("top", "bottom")}
    images = (255 * pictures).round().to(torch.uint8).cpu()
    return [
        cut_view(image, place)
        for image, layout in zip(images, layouts.tolist(), strict=True)
        for place in places[layout]
    ]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("build/emoji"))
    parser.add_argument("--n", type=int, default=400, help="pictures of each kind of drawings")
    args = parser.parse_args()
    device = choose_device()
    model = load_model("emoji", None, torch.device(device), "float32")
    a, b = model.classifier_a, model.classifier_b
    judges = {"A": [a], "B": [b], "both": [b, a]}
    drawings, rows, means = load_drawings(args.data, device)
    vae = load_vae(ASSETS / "vae", device)
    torch.manual_seed(0)
    print("| drawings | pictures |", " | ".join(judges), "|")
    print("| --- | --- |", " | ".join("---" for _ in judges), "|")
    for name, wanted in DRAWINGS.items():
        found, targets = class_indices(rows, **wanted)
        scenes = draw_scenes(found, means, args.n, Random(0))
        label = dict(zip(found, (a.labels[target] for target in targets), strict=True))
        right = [label[item] for pair in scenes.items[:, :2].tolist() for item in pair]
        drawn = Composer(drawings, scenes)(torch.arange(args.n, device=device))
        shown = {"drawn": drawn}
        shown |= {f"decoded, noise {noise}": smear(vae, drawn, 1.0, noise) for noise in NOISES}
        for how, pictures in shown.items():
            views = cut_halves(pictures, scenes.layouts)
            likeliest = [read_views(views, of).argmax(1).tolist() for of in judges.values()]
            shares = [
                np.mean([a.labels[x] == y for x, y in zip(found, right, strict=True)])
                for found in likeliest
            ]
            print(f"| {name} | {how} |", " | ".join(f"{share:.3f}" for share in shares), "|")


if __name__ == "__main__":
    main()
