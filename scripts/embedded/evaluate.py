"""Measure the embedded model: every figure of its table, and a sheet of samples.

Reconstruction PSNR of the 200 unseen drawings; retrieval of the 100 captions by CLIP pair B, for
generated pictures (25 DDIM steps, guidance 4, four seeds) and for drawings that B never saw; R2 of
the aesthetic head; accuracy of the classifiers on each other's half, and on generated pictures.

    python scripts/embedded/evaluate.py
"""

import argparse
import time
from pathlib import Path

import torch
from fit_aesthetic import embed, r_squared, score_pixels
from pictures import (
    ASSETS,
    choose_device,
    compose_plain,
    load_drawings,
    read_set,
    unseen_indices,
    write_json,
)
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from train_autoencoder import mean_psnr
from train_classifier import class_indices
from train_clip import retrieval_pictures
from transformers import ResNetForImageClassification

from doodl_cli.bench.checks import BACKGROUNDS
from doodl_cli.models.latent_model import load_model
from doodl_cli.optimize import Problem, initial_noise, render
from doodl_cli.sampling import SAMPLERS, make_grid

N_STEPS, CFG_SCALE, N_SEEDS = 25, 4.0, 4
SHEET = (
    "a cat on a blue background",
    "a red apple on a black background",
    "a rocket on a yellow background",
    "a crown on purple",
    "a 3d picture of a hamburger",
    "a noto emoji of a house",
    "a twemoji emoji of a cat",
    "an outlined picture of an umbrella",
    "a blob emoji of a dog",
    "a flat picture of a butterfly",
    "a cat beside a red apple",
    "a rose next to a house",
    "a red apple above a butterfly",
    "a rocket above a house",
    "a crown below an umbrella",
    "two cats",
    "three red apples",
    "four butterflies on a pink background",
    "a cow",
    "a frog",
    "a car",
    "a tree",
    "a cup of tea",
    "a slice of pizza",
    "a banana",
    "a dinosaur",
    "a heart",
    "smiling face with sunglasses",
    "a castle",
    "a fish",
    "",
    "turquoise background",
)


class Generator:
    """Renders captions with the package's own model and its DDIM table (Song et al. 2021)."""

    def __init__(self, folder: Path, device: str):
        self.model = load_model("emoji", str(folder), torch.device(device), "float32")
        self.table = SAMPLERS["ddim"](make_grid(self.model.schedule, N_STEPS))

    def __call__(self, captions: list[str], seed: int, batch: int = 100) -> torch.Tensor:
        """Return 8-bit pictures in [0, 1], (b, 3, 64, 64); caption k has its own x_T."""
        seeds = [1000 * seed + k for k in range(len(captions))]
        x_T = initial_noise(seeds, self.model.latent_shape).to(self.model.device)
        pictures = []
        for k in range(0, len(captions), batch):
            part, x = captions[k : k + batch], x_T[k : k + batch]
            net = self.model.net(part, [""] * len(part), CFG_SCALE)
            problem = Problem(
                self.table, net, self.model.decode, {}, {}, part, seeds[k : k + batch],
                device=self.model.device,
            )  # fmt: skip
            pictures.append(render(problem, (x, x)))
        return torch.cat(pictures).to(self.model.device).float() / 255


def draw_sheet(pictures: list[torch.Tensor], captions: list[str], columns: int = 8) -> Image.Image:
    """Return a sheet with each caption's pictures side by side above it."""
    width, height = 140 * len(pictures), 160
    n_rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * width, n_rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for k, caption in enumerate(captions):
        x, y = k % columns * width, k // columns * height
        for j, picture in enumerate(pictures):
            array = (picture[k].permute(1, 2, 0).cpu().numpy() * 255).round().astype("uint8")
            image = Image.fromarray(array).resize((128, 128), Image.Resampling.BICUBIC)
            sheet.paste(image, (x + 140 * j + 6, y + 4))
        draw.text((x + 6, y + 136), caption or "(empty)", fill="black")
    return sheet


def keep(folder: Path, figures: dict) -> None:
    """Write the figures so far, and print them."""
    figures = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    write_json(folder / "evaluation.json", figures)
    print(figures, flush=True)


def write_card(folder: Path, figures: dict) -> None:
    """Write the model card, README.md, from its template and the figures."""
    lists = {k: ", ".join(v) or "none" for k, v in figures.items() if isinstance(v, list)}
    template = Path(__file__).with_name("card.md").read_text()
    (folder / "README.md").write_text(template.format(**figures | lists))


def main() -> None:
    """Measure everything; write evaluation.json, the sheet and the model card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("build/emoji"))
    parser.add_argument("--model", type=Path, default=ASSETS)
    parser.add_argument("--seeds", type=int, default=N_SEEDS)
    parser.add_argument("--sheet", type=Path, help="by default samples.webp in the assets")
    args = parser.parse_args()
    device = choose_device()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    start, figures = time.time(), {}
    drawings, rows, _ = load_drawings(args.data, device)
    generate = Generator(args.model, device)
    unseen = compose_plain(drawings, unseen_indices(rows))
    figures["psnr_unseen_db"] = mean_psnr(generate.model.vae, unseen)

    prompts = read_set("prompts.txt")
    neutral = list(dict.fromkeys(line.split("\t")[1] for line in read_set("vocabulary.txt")))
    shown = [*prompts, *neutral, *SHEET]
    sheet = draw_sheet([generate(shown, seed) for seed in (0, 1)], shown, 6)
    sheet.save(args.sheet or args.model / "samples.webp", quality=80, method=6)

    keep(args.model, figures)

    captions = read_set("retrieval_captions.txt")
    generated = torch.cat([generate(captions, seed) for seed in range(args.seeds)])
    target = torch.arange(len(captions), device=device).repeat(args.seeds)
    for pair, other in (("b", "A"), ("a", "B")):
        clip = getattr(generate.model, f"clip_{pair}")
        texts = clip.embed_texts(captions)
        found, concept = retrieval_pictures(rows, split="train", half=other)
        real = compose_plain(drawings, found)
        for name, picture, right in (
            ("generated", generated, target),
            ("real", real, torch.tensor(concept, device=device)),
        ):
            top = (clip.embed_images(2 * picture - 1) @ texts.T).argmax(1) == right
            figures[f"retrieval_{name}_{pair}"] = top.float().mean().item()
            if name == "generated":
                wrong = top.view(args.seeds, -1).float().mean(0)
                figures[f"never_retrieved_{pair}"] = [
                    caption for caption, share in zip(captions, wrong, strict=True) if share == 0
                ]
        if pair == "a":
            head = load_file(args.model / "aesthetic" / "head.safetensors", device=device)
            for name, picture in (("unseen", unseen), ("generated", generated)):
                score = (embed(clip.model, picture) @ head["weight"][0].double()) + head["bias"]
                figures[f"head_r2_{name}"] = r_squared(score, score_pixels(picture).double())

    keep(args.model, figures)
    number = {line.split("\t")[0]: k for k, line in enumerate(read_set("classes.txt"))}
    bare = [caption.split(" ", 1)[-1] if caption.startswith(("a ", "an ")) else caption
            for caption in captions]  # fmt: skip
    for half, other in (("a", "B"), ("b", "A")):
        model = ResNetForImageClassification.from_pretrained(args.model / f"classifier_{half}")
        model = model.float().to(device).eval()
        found, right = class_indices(rows, split="train", class_half=other)
        known = [k for k, name in enumerate(bare) if name in number]
        known = [k + len(captions) * seed for seed in range(args.seeds) for k in known]
        for name, picture, goal in (
            ("real", compose_plain(drawings, found), right),
            ("generated", generated[known], [number[bare[k % len(captions)]] for k in known]),
        ):
            with torch.no_grad():
                best = model(2 * picture - 1).logits.argmax(1).cpu()
            share = (best == torch.tensor(goal)).float().mean().item()
            figures[f"classifier_{half}_{name}"] = share

    keep(args.model, figures)
    white = read_set("prompts.txt")
    colours = [name for name in BACKGROUNDS if name != "white"]
    asked = [f"{prompt} on a {colour} background" for prompt in white for colour in colours]
    corner = generate(asked, 9)[:, :, :3, :3].mean((2, 3)) * 255
    table = torch.tensor(list(BACKGROUNDS.values()), device=device).float()
    nearest = torch.cdist(corner, table).argmin(1).cpu()
    names = list(BACKGROUNDS)
    right = [names[k] == colours[i % len(colours)] for i, k in enumerate(nearest.tolist())]
    figures["background_right"] = sum(right) / len(right)
    figures["device"] = torch.cuda.get_device_name() if device == "cuda" else "a CPU"
    figures["n_steps"], figures["cfg_scale"], figures["seeds"] = N_STEPS, CFG_SCALE, args.seeds
    keep(args.model, figures)
    write_card(args.model, figures)
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
