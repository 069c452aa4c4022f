"""Measure `clip_text` on the hundred complex prompts, by what it did not optimise.

Held-out pair B's similarity to the prompt, and the checks that need no CLIP: the background's
colour at the picture's border, and which concept both classifiers see in a half. Means before and
after, and the paired gain with its 95 % bootstrap interval over prompts.

    python scripts/embedded/measure_complex.py --out build/complex.jsonl
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from make_suites import SUITES
from outcomes import draw_pairs, optimise, read_settings
from pictures import choose_device

from doodl_cli.bench.checks import check, choose_judges, look, share_held
from doodl_cli.bench.statistics import Interval, bootstrap_mean
from doodl_cli.commands import task


def describe_gain(before: np.ndarray, after: np.ndarray) -> dict:
    """Return both means and the paired gain with its interval."""
    gain: Interval = bootstrap_mean(after - before)
    return {
        "before": round(float(before.mean()), 4),
        "after": round(float(after.mean()), 4),
        "gain": round(gain.mean, 4),
        "interval": [round(gain.low, 4), round(gain.high, 4)],
    }


def main() -> None:
    """Measure every setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", default=[""], help="overrides of `doodl run`")
    parser.add_argument("--out", type=Path, required=True, help="one line of JSON a setting")
    parser.add_argument("--n-prompts", type=int, help="only the first of each kind")
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    entries = [json.loads(line) for line in (SUITES / "complex.jsonl").open()]
    entries = list({entry["prompt"]: entry for entry in entries}.values())
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
        wanted = [entry["check"] for entry in entries]
        judges = choose_judges(model, config.guidance)
        found = [check(wanted, images, look(wanted, images, judges)) for images in pictures]
        checks = [np.array([share_held(held) for held in of_all]) for of_all in found]
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
