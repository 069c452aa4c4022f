"""Measure `clip_text` on the hundred complex prompts, by what it did not optimise.

Held-out pair B's similarity to the prompt, and the checks that need no CLIP: the background's
colour at the picture's border, and which concept classifier B sees in a half. Means before and
after, and the paired gain with its 95 % bootstrap interval over prompts.

    python scripts/embedded/measure_complex.py --out build/complex.jsonl "optimizer.clip=1e-2"
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from captions import BACKGROUNDS
from outcomes import draw_pairs, optimise, read_settings, to_float
from pictures import SETS, choose_device
from scipy.stats import bootstrap
from torch import Tensor

from doodl_cli.commands import task
from doodl_cli.models.latent_model import LatentModel

PLACES = {"top": (0, 16), "bottom": (32, 16), "left": (16, 0), "right": (16, 32)}


def read_border(image: Tensor) -> str:
    """Return the word of the background nearest to the border's median colour; uint8 (3, h, w)."""
    mask = torch.ones(image.shape[1:], dtype=torch.bool)
    mask[2:-2, 2:-2] = False
    colour = image[:, mask].float().median(1).values
    table = torch.tensor(list(BACKGROUNDS.values())).float()
    return list(BACKGROUNDS)[int((table - colour).norm(dim=1).argmin())]


def read_place(image: Tensor, place: str, model: LatentModel) -> str:
    """Return the class that classifier B sees in one half of a picture: a drawing at half size."""
    y, x = PLACES[place]
    part = to_float(image[None, :, y : y + 32, x : x + 32], model)
    part = F.interpolate(part, (64, 64), mode="bicubic", antialias=True).clamp(-1, 1)
    return model.classifier_b.labels[int(model.classifier_b.log_probabilities(part).argmax())]


def check(entry: dict, image: Tensor, model: LatentModel) -> float:
    """Return the share of an entry's checks that hold."""
    wanted, held = entry["check"], []
    if "background" in wanted:
        held.append(read_border(image) == wanted["background"])
    held += [read_place(image, k, model) == wanted[k] for k in ("top", "bottom") if k in wanted]
    if "sides" in wanted:
        seen = sorted(read_place(image, side, model) for side in ("left", "right"))
        held.append(seen == sorted(wanted["sides"]))
    return float(np.mean(held))


def describe_gain(before: np.ndarray, after: np.ndarray) -> dict:
    """Return both means and the paired gain with its interval."""
    gain = after - before
    interval = bootstrap((gain,), np.mean, random_state=0).confidence_interval
    return {
        "before": round(float(before.mean()), 4),
        "after": round(float(after.mean()), 4),
        "gain": round(float(gain.mean()), 4),
        "interval": [round(float(bound), 4) for bound in interval],
    }


def main() -> None:
    """Measure every setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", default=[""], help="overrides of `doodl run`")
    parser.add_argument("--out", type=Path, required=True, help="one line of JSON a setting")
    parser.add_argument("--n-prompts", type=int, help="only the first of each kind")
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    entries = [json.loads(line) for line in (SETS / "complex_prompts.jsonl").open()]
    if args.n_prompts:
        kinds = dict.fromkeys(entry["kind"] for entry in entries)
        entries = [
            entry
            for kind in kinds
            for entry in [e for e in entries if e["kind"] == kind][: args.n_prompts]
        ]
    device, model = choose_device(), None
    texts = [entry["prompt"] for entry in entries]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for line in args.settings:
        (config,) = read_settings([f"guidance=clip_text {line}"], device)
        model = model or task.load(config, torch.device(device))
        outcome = optimise(config, model, texts, list(range(len(texts))))
        pictures = (outcome.images_first, outcome.images_best)
        checks = [
            np.array([check(e, image, model) for e, image in zip(entries, images, strict=True)])
            for images in pictures
        ]
        similarity = [scores["clip_text_b"].numpy() for scores in (outcome.first, outcome.best)]
        result = {
            "settings": line,
            "seconds": round(outcome.seconds, 1),
            "similarity": describe_gain(*similarity),
            "checks": describe_gain(*checks),
        }
        for kind in dict.fromkeys(entry["kind"] for entry in entries):
            of_kind = [entry["kind"] == kind for entry in entries]
            result[kind] = [round(float(part[of_kind].mean()), 3) for part in checks]
        with args.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)
        if args.sheet:
            lines = [(text, f"checks {a:.2f}, then {b:.2f}")
                     for text, a, b in zip(texts, *checks, strict=True)]  # fmt: skip
            draw_pairs(outcome, lines).save(args.sheet, quality=80)


if __name__ == "__main__":
    main()
