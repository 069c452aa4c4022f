"""Measure how far the CLIPs agree on which of a prompt's pictures shows it best.

Sixteen pictures of each complex prompt that methods are tuned on, from noises of their own; of
every two CLIPs the correlation of their similarities, less each prompt's mean. What a guiding CLIP
and the held-out one do not agree on, no method can gain by the one and show by the other.

    python scripts/embedded/measure_agreement.py [NAME=FOLDER ...]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from generated import paint
from make_suites import SUITES
from pictures import ASSETS, choose_device
from torch import Tensor

from doodl_cli.guidance.clip import text_similarity
from doodl_cli.models.clip import load_clip
from doodl_cli.models.latent_model import load_model
from doodl_cli.optimize.assess import from_8_bit

OWN = {"A": ASSETS / "clip_a", "B": ASSETS / "clip_b", "C": ASSETS / "clip_c"}


@torch.no_grad()
def similarities(folder: Path, pictures: Tensor, prompts: list[str]) -> np.ndarray:
    """Return a CLIP's similarities (n, b) of pictures (n, b, 3, h, w) in [-1, 1] to b prompts."""
    score = text_similarity(load_clip(f"local-dir:{folder}", None, pictures.device, str(folder)))
    return torch.stack([score(batch, prompts) for batch in pictures]).cpu().numpy()


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of two scores (n, b) within the columns."""
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def main() -> None:
    """Print a line a CLIP."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="*", help="further CLIPs, NAME=FOLDER")
    parser.add_argument("--n-noises", type=int, default=16)
    parser.add_argument("--n-prompts", type=int)
    args = parser.parse_args()
    device = torch.device(choose_device())
    given = dict(word.split("=", 1) for word in args.clips)
    folders = OWN | {name: Path(folder) for name, folder in given.items()}
    lines = (SUITES / "tuning/complex.jsonl").read_text().splitlines()
    prompts = list(dict.fromkeys(json.loads(line)["prompt"] for line in lines))[: args.n_prompts]
    torch.manual_seed(0)
    model = load_model("emoji", None, device, "float32")
    pictures = [from_8_bit(paint(model, prompts)) for _ in range(args.n_noises)]
    found = {
        name: similarities(folder, torch.stack(pictures), prompts)
        for name, folder in folders.items()
    }
    for name, scores in found.items():
        others = [f"{other} {correlation(scores, x):.3f}" for other, x in found.items()]
        print(f"{name}: mean {scores.mean():.4f}; correlation with {', '.join(others)}")


if __name__ == "__main__":
    main()
