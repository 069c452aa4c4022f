"""Fit the aesthetic head: colourfulness, read linearly from CLIP pair A's image embedding.

The score is 1 + 9 C / 150, with C the Hasler-Suesstrunk colourfulness of the pixels: a grey
picture scores 1, a very colourful one 10. This is no human judgement of beauty; its point is that
the pixel formula measures without error what the head only estimates. A ridge regression on
training pictures over random backgrounds, a third of them recoloured up to saturations that no
drawing has, so that the head keeps rising where guidance pushes it.

    python scripts/embedded/fit_aesthetic.py
"""

import argparse
from pathlib import Path

import open_clip
import torch
from pictures import (
    ASSETS,
    Composer,
    choose_device,
    colourfulness,
    compose_plain,
    draw_examples,
    indices_where,
    jitter_colours,
    load_drawings,
    unseen_indices,
    write_json,
)
from safetensors.torch import save_file

FULL_COLOURFULNESS = 150.0
RIDGE = 1e-4  # of the Gram matrix's mean diagonal


def score_pixels(picture: torch.Tensor) -> torch.Tensor:
    """Return the scores 1 + 9 C / 150 of pictures in [0, 1]: (b,)."""
    return 1 + 9 * colourfulness(picture) / FULL_COLOURFULNESS


@torch.no_grad()
def embed(model, picture: torch.Tensor) -> torch.Tensor:
    """Return normalised float64 embeddings (b, d) of pictures in [0, 1]."""
    parts = [model.encode_image(2 * part - 1, normalize=True) for part in picture.split(250)]
    return torch.cat(parts).double()


def r_squared(predicted: torch.Tensor, truth: torch.Tensor) -> float:
    """Return 1 - residual / total variance."""
    return (1 - (predicted - truth).square().sum() / (truth - truth.mean()).square().sum()).item()


def main() -> None:
    """Fit, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("build/emoji"))
    parser.add_argument("--clip", type=Path, default=ASSETS / "clip_a")
    parser.add_argument("--out", type=Path, default=ASSETS / "aesthetic")
    parser.add_argument("--pictures", type=int, default=12_000)
    args = parser.parse_args()
    device = choose_device()
    torch.manual_seed(0)
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{args.clip}", device=device)
    model.eval()
    drawings, rows, means = load_drawings(args.data, device)
    examples = draw_examples(rows, means, indices_where(rows, split="train"), args.pictures, 11)
    compose = Composer(drawings, examples)
    features, truths = [], []
    for at in torch.arange(args.pictures, device=device).split(1000):
        picture = compose(at)
        varied = torch.rand(len(at), 1, 1, 1, device=device) < 1 / 3
        picture = torch.where(varied, jitter_colours(picture, 0.8), picture)
        features.append(embed(model, picture))
        truths.append(score_pixels(picture).double())
    x, y = torch.cat(features), torch.cat(truths)
    x_mean, y_mean = x.mean(0), y.mean()
    gram = (x - x_mean).T @ (x - x_mean)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), device=device)
    weight = torch.linalg.solve(gram, (x - x_mean).T @ (y - y_mean))
    bias = y_mean - weight @ x_mean
    print(f"R2 on the fitted pictures {r_squared(x @ weight + bias, y):.3f}")
    picture = compose_plain(drawings, unseen_indices(rows))
    predicted = embed(model, picture) @ weight + bias
    print(f"R2 on the unseen, white {r_squared(predicted, score_pixels(picture).double()):.3f}")
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(
        {"weight": weight[None].float().cpu(), "bias": bias[None].float().cpu()},
        args.out / "head.safetensors",
    )
    write_json(
        args.out / "config.json",
        {
            "score": "1 + 9 C / 150, C the Hasler-Suesstrunk (2003) colourfulness of the pixels",
            "embedding": "L2-normalised image embedding of clip_a",
            "full_colourfulness": FULL_COLOURFULNESS,
            "embed_dim": len(weight),
        },
    )


if __name__ == "__main__":
    main()
