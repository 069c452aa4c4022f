"""Measure what guidance does on the embedded model, by what it did not optimise.

Every setting is a line of `doodl run` overrides. Each optimises the x_T of the same prompts (the
first of the 50 ranking captions; the ten of the main job lead) and seeds, and is measured by

    ratio       colourfulness of best / initial, by the pixel formula
    similarity  cosine of held-out pair B between picture and prompt, best - initial
    rank        place of the prompt's own caption among the 50 for pair B

    python scripts/embedded/measure_guidance.py --out build/guidance.jsonl \\
        "guidance=aesthetic" "guidance=aesthetic sampler.n_steps=12 optimizer.clip=2e-2"

One line of JSON a setting, and a sheet of all pairs (initial, best) beside it with `--sheets`.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from outcomes import Outcome, draw_pairs, in_standard_errors, optimise, read_settings, to_float
from pictures import choose_device, read_set
from torch import Tensor

from doodl_cli.commands import task
from doodl_cli.models.latent_model import LatentModel

N_MAIN = 10  # prompts of the main job


def rank(model: LatentModel, images: Tensor, captions: list[str], own: Tensor) -> Tensor:
    """Return the place (b,), from 1, of each picture's own caption for pair B."""
    embedded = model.clip_b.embed_images(to_float(images, model))
    similarity = embedded @ model.clip_b.embed_texts(captions).T
    mine = similarity.gather(1, own.to(model.device)[:, None])
    return (similarity > mine).sum(1).cpu() + 1


def measure(outcome: Outcome, model: LatentModel, texts: list[str]) -> dict[str, Tensor]:
    """Return the figures of every sample (b,)."""
    captions = read_set("ranking_captions.txt")
    own = torch.tensor([captions.index(text) for text in texts])
    initial, best = outcome.first["colourfulness"], outcome.best["colourfulness"]
    return {
        "initial": initial,
        "best": best,
        "ratio": best / initial,
        "similarity": outcome.best["clip_text_b"] - outcome.first["clip_text_b"],
        "rank_initial": rank(model, outcome.images_first, captions, own),
        "rank": rank(model, outcome.images_best, captions, own),
    }


def summarise(figures: dict[str, Tensor], n_seeds: int) -> dict[str, float]:
    """Return the figures of the main job's prompts and of the others."""
    summary = {}
    n_main = N_MAIN * n_seeds
    for name, part in (("ten", slice(n_main)), ("others", slice(n_main, None))):
        ratio = figures["ratio"][part]
        if len(ratio) == 0:
            continue
        summary[f"{name}_ratio_mean"] = ratio.mean().item()
        summary[f"{name}_ratio_min"] = ratio.min().item()
        summary[f"{name}_share_1.3"] = (ratio >= 1.3).float().mean().item()
        mean, errors = in_standard_errors(figures["similarity"][part])
        summary[f"{name}_similarity"], summary[f"{name}_standard_errors"] = mean, errors
        for key in ("rank_initial", "rank"):
            summary[f"{name}_{key}_within_3"] = (figures[key][part] <= 3).float().mean().item()
    return {name: round(value, 4) for name, value in summary.items()}


def describe(figures: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Return the captions of every pair."""
    columns = (figures[k].tolist() for k in ("initial", "rank_initial", "best", "rank"))
    gains = zip(figures["ratio"].tolist(), figures["similarity"].tolist(), strict=True)
    return [
        (f"{initial:.0f} rank {before}", f"{best:.0f} rank {after} x{ratio:.2f} B {gain:+.3f}")
        for (initial, before, best, after), (ratio, gain) in zip(
            zip(*columns, strict=True), gains, strict=True
        )
    ]


def main() -> None:
    """Measure every setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="+", help="overrides of `doodl run`, a line each")
    parser.add_argument("--out", type=Path, required=True, help="one line of JSON a setting")
    parser.add_argument("--n-prompts", type=int, default=N_MAIN)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sheets", action="store_true")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = choose_device()
    prompts = read_set("ranking_captions.txt")[: args.n_prompts]
    assert prompts[:N_MAIN] == read_set("prompts.txt")[: args.n_prompts]
    texts = [prompt for prompt in prompts for _ in args.seeds]
    seeds = args.seeds * len(prompts)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    configs = read_settings(args.settings, device)
    model = task.load(configs[0], torch.device(device))
    for line, config in zip(args.settings, configs, strict=True):
        outcome = optimise(config, model, texts, seeds)
        figures = measure(outcome, model, texts)
        summary = {"seconds": round(outcome.seconds, 1), **summarise(figures, len(args.seeds))}
        result = {"settings": line, **summary}
        for name in ("initial", "best", "similarity", "rank_initial", "rank"):
            result[name] = [round(value, 3) for value in figures[name].tolist()]
        with args.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps({"settings": line, **summary}), flush=True)
        if args.sheets:
            name = re.sub(r"[^\w.=]+", "_", line) + ".webp"
            draw_pairs(outcome, describe(figures)).save(args.out.with_name(name), quality=80)


if __name__ == "__main__":
    main()
