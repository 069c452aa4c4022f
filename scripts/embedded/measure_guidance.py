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
import time
from dataclasses import replace
from pathlib import Path

import torch
from pictures import choose_device, read_set
from PIL import Image
from torch import Tensor

from doodl_cli.commands import task
from doodl_cli.commands.application import composer, resolve
from doodl_cli.config import Config, read_config
from doodl_cli.figures import draw_grid
from doodl_cli.guidance import build_evaluation, build_guidance
from doodl_cli.models.latent_model import LatentModel
from doodl_cli.optimize import initial_noise, optimize
from doodl_cli.requests import list_requests

N_MAIN = 10  # prompts of the main job


def rank(model: LatentModel, images: Tensor, captions: list[str], own: Tensor) -> Tensor:
    """Return the place (b,), from 1, of each picture's own caption for pair B."""
    images = images.to(model.device).float() / 127.5 - 1
    similarity = model.clip_b.embed_images(images) @ model.clip_b.embed_texts(captions).T
    mine = similarity.gather(1, own.to(model.device)[:, None])
    return (similarity > mine).sum(1).cpu() + 1


def measure(
    config: Config, model: LatentModel, prompts: list[str], seeds: list[int]
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Optimise every prompt from every seed; return figures (b,) and the pictures before, after."""
    captions = read_set("ranking_captions.txt")
    texts = [prompt for prompt in prompts for _ in seeds]
    own = torch.tensor([captions.index(text) for text in texts])
    config = replace(config, prompt=prompts[0], seed=seeds * len(prompts))
    guidance = build_guidance(config.guidance, model)
    evaluation = build_evaluation(config.evaluate, config.guidance, model)
    problem = task.make_problem(config, model, list_requests(config), guidance, evaluation)
    net = model.net(texts, [config.negative_prompt] * len(texts), config.cfg_scale)
    problem = replace(problem, net=net, prompts=texts, device=model.device)
    x_T = initial_noise(config.seeds, model.latent_shape)
    began, figures = time.time(), {}
    for record in optimize(problem, task.make_settings(config), (x_T, x_T.clone())):
        improved = torch.tensor(record.best)
        now = {name: torch.tensor(values) for name, values in record.evaluate.items()}
        if record.iteration == 0:
            initial, best = record.images, record.images.clone()
            first, last = now, {name: values.clone() for name, values in now.items()}
        best[improved] = record.images[improved]
        for name, values in now.items():
            last[name][improved] = values[improved]
    figures["seconds"] = torch.tensor(time.time() - began)
    figures["initial"], figures["best"] = first["colourfulness"], last["colourfulness"]
    figures["ratio"] = figures["best"] / figures["initial"]
    figures["similarity"] = last["clip_text_b"] - first["clip_text_b"]
    figures["rank_initial"] = rank(model, initial, captions, own)
    figures["rank"] = rank(model, best, captions, own)
    return figures, (initial, best)


def summarise(figures: dict[str, Tensor], n_seeds: int) -> dict[str, float]:
    """Return the figures of the main job's prompts and of the others."""
    summary = {"seconds": figures["seconds"].item()}
    n_main = N_MAIN * n_seeds
    for name, part in (("ten", slice(n_main)), ("others", slice(n_main, None))):
        ratio, similarity = figures["ratio"][part], figures["similarity"][part]
        if len(ratio) == 0:
            continue
        summary[f"{name}_ratio_mean"] = ratio.mean().item()
        summary[f"{name}_ratio_min"] = ratio.min().item()
        summary[f"{name}_share_1.3"] = (ratio >= 1.3).float().mean().item()
        summary[f"{name}_similarity"] = similarity.mean().item()
        error = similarity.std() / len(similarity) ** 0.5
        summary[f"{name}_standard_errors"] = (similarity.mean() / error).item()
        for key in ("rank_initial", "rank"):
            summary[f"{name}_{key}_within_3"] = (figures[key][part] <= 3).float().mean().item()
    return {name: round(value, 4) for name, value in summary.items()}


def draw_sheet(figures: dict[str, Tensor], pictures: tuple[Tensor, Tensor]) -> Image.Image:
    """Draw every pair, before and after, three pairs a row."""
    tiles = []
    for i, pair in enumerate(zip(*pictures, strict=True)):
        captions = (
            f"{figures['initial'][i]:.0f} rank {figures['rank_initial'][i]}",
            f"{figures['best'][i]:.0f} rank {figures['rank'][i]} x{figures['ratio'][i]:.2f} "
            f"B {figures['similarity'][i]:+.3f}",
        )
        for image, caption in zip(pair, captions, strict=True):
            tiles.append((Image.fromarray(image.permute(1, 2, 0).numpy()), [caption]))
    return draw_grid([tiles[k : k + 6] for k in range(0, len(tiles), 6)])


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
    device = torch.device(choose_device())
    prompts = read_set("ranking_captions.txt")[: args.n_prompts]
    assert prompts[:N_MAIN] == read_set("prompts.txt")[: args.n_prompts]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with composer(None) as compose:
        configs = [
            read_config({**resolve(compose("run", line.split())), "device": str(device)})
            for line in args.settings
        ]
    model = task.load(configs[0], device)
    for line, config in zip(args.settings, configs, strict=True):
        figures, pictures = measure(config, model, prompts, args.seeds)
        result = {"settings": line, **summarise(figures, len(args.seeds))}
        for name in ("initial", "best", "similarity", "rank_initial", "rank"):
            result[name] = [round(value, 3) for value in figures[name].tolist()]
        with args.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(json.dumps({k: v for k, v in result.items() if not isinstance(v, list)}), flush=True)
        if args.sheets:
            name = re.sub(r"[^\w.=]+", "_", line) + ".webp"
            draw_sheet(figures, pictures).save(args.out.with_name(name), quality=80)


if __name__ == "__main__":
    main()
