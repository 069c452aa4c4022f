"""Measure how far the CLIPs agree on which of a prompt's pictures shows it best.

Sixteen pictures of each complex prompt that methods are tuned on, from noises of their own; of
every two CLIPs the correlation of their similarities, less each prompt's mean, and, of the prompts
that name things, with how surely the classifiers see these. What a guiding CLIP and a judge do not
agree on, no method can gain by the one and show by the other.

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

from doodl_cli.bench.checks import choose_judges, look, measure_presence
from doodl_cli.guidance.clip import text_similarity
from doodl_cli.models.clip import load_clip
from doodl_cli.models.latent_model import LatentModel, load_model
from doodl_cli.optimize.assess import from_8_bit

OWN = {"A": ASSETS / "clip_a", "B": ASSETS / "clip_b", "C": ASSETS / "clip_c"}


@torch.no_grad()
def similarities(folder: Path, pictures: Tensor, prompts: list[str]) -> np.ndarray:
    """Return a CLIP's similarities (n, b) of pictures (n, b, 3, h, w) in [-1, 1] to b prompts."""
    score = text_similarity(load_clip(f"local-dir:{folder}", None, pictures.device, str(folder)))
    return torch.stack([score(batch, prompts) for batch in pictures]).cpu().numpy()


def presences(wanted: list[dict], pictures: Tensor, model: LatentModel) -> np.ndarray:
    """Return how surely both classifiers see what is wanted of 8-bit pictures (n, b, 3, h, w)."""
    judges = choose_judges(model, ["clip_text"])
    found = [measure_presence(wanted, look(wanted, list(x), judges)) for x in pictures]
    return np.array(found, dtype=float)  # NaN where no class is wanted


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the correlation of two scores (n, b) within the columns; NaN are left out."""
    known = ~np.isnan(a + b).any(0)
    a, b = a[:, known], b[:, known]
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def main() -> None:
    """Print a line a CLIP, and one for A with each that is not the held-out B."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="*", help="further CLIPs, NAME=FOLDER")
    parser.add_argument("--n-noises", type=int, default=16)
    parser.add_argument("--n-prompts", type=int)
    args = parser.parse_args()
    device = torch.device(choose_device())
    given = dict(word.split("=", 1) for word in args.clips)
    folders = OWN | {name: Path(folder) for name, folder in given.items()}
    lines = map(json.loads, (SUITES / "tuning/complex.jsonl").read_text().splitlines())
    checks = {line["prompt"]: line["check"] for line in lines}
    prompts = list(checks)[: args.n_prompts]
    torch.manual_seed(0)
    model = load_model("emoji", None, device, "float32")
    painted = torch.stack([paint(model, prompts) for _ in range(args.n_noises)])
    pictures = from_8_bit(painted)
    found = {name: similarities(folder, pictures, prompts) for name, folder in folders.items()}
    seen = presences([checks[prompt] for prompt in prompts], painted.cpu(), model)
    others = found | {"presence": seen}
    pairs = {f"A and {name}": (found["A"] + found[name]) / 2 for name in found if name not in "AB"}
    for name, scores in (found | pairs).items():
        shown = [f"{other} {correlation(scores, x):.3f}" for other, x in others.items()]
        print(f"{name}: mean {scores.mean():.4f}; correlation with {', '.join(shown)}")


if __name__ == "__main__":
    main()
