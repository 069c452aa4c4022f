"""Measure vocabulary expansion: concepts that the text encoder never saw, asked of a classifier.

Each of the 12 vocabulary concepts is drawn under its neutral prompt ("an animal") and guided by
classifier A; classifier B, trained on other drawings and never optimised, says with all its classes
in play whether the concept is there (top-1), before and after.

    python scripts/embedded/measure_vocabulary.py --out build/vocabulary.jsonl "optimizer.clip=1e-2"
"""

import argparse
import json
from pathlib import Path

import torch
from outcomes import draw_pairs, optimise, read_settings, to_float
from pictures import choose_device, read_set

from doodl_cli.commands import task
from doodl_cli.guidance.classifier import find_target


def main() -> None:
    """Measure every setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", default=[""], help="overrides of `doodl run`")
    parser.add_argument("--out", type=Path, required=True, help="one line of JSON a setting")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", nargs="+", help="some of the concepts")
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    device = choose_device()
    concepts = [line.split("\t") for line in read_set("vocabulary.txt")]
    concepts = [(word, prompt) for word, prompt in concepts if word in (args.only or [word])]
    model = None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for line in args.settings:
        shares: dict[str, dict[str, float]] = {"before": {}, "after": {}}
        sheets = []
        for word, prompt in concepts:
            words = f"guidance=classifier guidance.classifier.target={word} {line}"
            (config,) = read_settings([words], device)
            model = model or task.load(config, torch.device(device))
            outcome = optimise(config, model, [prompt] * args.seeds, list(range(args.seeds)))
            number = find_target(model.classifier_b, word)
            right = {}
            for name, images in (("before", outcome.images_first), ("after", outcome.images_best)):
                found = model.classifier_b.log_probabilities(to_float(images, model)).argmax(1)
                right[name] = (found == number).tolist()
                shares[name][word] = sum(right[name]) / args.seeds
            print(line, word, shares["before"][word], shares["after"][word], flush=True)
            marks = [
                (f"{prompt} {'yes' if a else 'no'}", f"{word} {'yes' if b else 'no'}")
                for a, b in zip(right["before"], right["after"], strict=True)
            ]
            sheets.append((outcome, marks))
        result = {"settings": line, "seeds": args.seeds}
        for name, by_concept in shares.items():
            result[name] = sum(by_concept.values()) / len(by_concept)
        result["by_concept"] = shares["after"]
        with args.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps(result), flush=True)
        if args.sheet:
            drawn = [draw_pairs(*sheet) for sheet in sheets]
            for k, image in enumerate(drawn):
                image.save(args.sheet.with_stem(f"{args.sheet.stem}_{concepts[k][0]}"), quality=80)


if __name__ == "__main__":
    main()
