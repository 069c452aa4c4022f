"""Measure image-conditioned guidance: 20 reference pictures, each with its concept's caption.

CLIP pair A guides towards the reference; held-out pair B says whether the picture has come nearer
to it, and whether the prompt's own caption keeps its rank among the 50.

    python scripts/embedded/measure_references.py --out build/references.jsonl "optimizer.clip=1e-2"
"""

import argparse
import json
from pathlib import Path

import torch
from make_suites import SUITES
from measure_guidance import rank
from outcomes import draw_pairs, in_standard_errors, optimise, read_settings
from pictures import choose_device, read_set

from doodl_cli.commands import task

N = 20  # references of the suite


def main() -> None:
    """Measure every setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", default=[""], help="overrides of `doodl run`")
    parser.add_argument("--out", type=Path, required=True, help="one line of JSON a setting")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sheets", type=Path, help="a folder")
    args = parser.parse_args()
    device, captions = choose_device(), read_set("ranking_captions.txt")
    rows = [json.loads(line) for line in (SUITES / "references.jsonl").open()]
    references = [(row["image"], row["prompt"]) for row in rows[:N]]
    model = None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for line in args.settings:
        gains, kept, ranks = [], [], []
        for name, caption in references:
            path = SUITES / name
            words = f"guidance=clip_image guidance.clip_image.images={path} {line}"
            (config,) = read_settings([words], device)
            model = model or task.load(config, torch.device(device))
            outcome = optimise(config, model, [caption] * len(args.seeds), args.seeds)
            gain = outcome.best["clip_image_b"] - outcome.first["clip_image_b"]
            own = torch.full((len(args.seeds),), captions.index(caption))
            before = rank(model, outcome.images_first, captions, own)
            after = rank(model, outcome.images_best, captions, own)
            gains.append(gain)
            kept.append((after <= before).float())
            ranks.append((after <= 3).float())
            if args.sheets:
                lines = [(caption, f"{value:+.3f}") for value in gain.tolist()]
                args.sheets.mkdir(parents=True, exist_ok=True)
                draw_pairs(outcome, lines).save(args.sheets / f"{Path(name).stem}.webp", quality=80)
        mean, errors = in_standard_errors(torch.stack(gains).mean(1))  # a value a reference
        result = {
            "settings": line,
            "similarity_gain": round(mean, 4),
            "standard_errors": round(errors, 2),
            "rank_kept": round(torch.cat(kept).mean().item(), 3),
            "rank_within_3": round(torch.cat(ranks).mean().item(), 3),
        }
        with args.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
