"""Aesthetic predictors: a small head on CLIP's unit picture embedding (LAION, 2022).

    v1   one linear layer, fitted to one of OpenAI's CLIPs
    v2   five linear layers without activations between them ("improved aesthetic predictor")

Several heads make one score, their weighted mean. The score is not clamped: outside of the range
that it was fitted to it still has a gradient.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from doodl_cli.config import Aesthetic, Head
from doodl_cli.errors import UserError
from doodl_cli.guidance.guidance import Guidance, Score
from doodl_cli.models.clip import Clip, load_clip
from doodl_cli.models.fetch import explain, fetch_url
from doodl_cli.models.locate import hash_file

if TYPE_CHECKING:
    from doodl_cli.models.latent_model import LatentModel

KEY = "guidance.aesthetic.heads"
V1_URL = "https://github.com/LAION-AI/aesthetic-predictor/raw/main"
V2_URL = "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main"


class Published(NamedTuple):
    """A head of LAION's: the CLIP that it was fitted to, all with OpenAI's weights, and its URL."""

    clip: str
    url: str


PUBLISHED = {
    "sa_0_4_vit_l_14_linear": Published(
        "ViT-L-14-quickgelu", f"{V1_URL}/sa_0_4_vit_l_14_linear.pth"
    ),
    "sa_0_4_vit_b_32_linear": Published(
        "ViT-B-32-quickgelu", f"{V1_URL}/sa_0_4_vit_b_32_linear.pth"
    ),
    "sa_0_4_vit_b_16_linear": Published(
        "ViT-B-16-quickgelu", f"{V1_URL}/sa_0_4_vit_b_16_linear.pth"
    ),
    "sac+logos+ava1-l14-linearMSE": Published(
        "ViT-L-14-quickgelu", f"{V2_URL}/sac%2Blogos%2Bava1-l14-linearMSE.pth"
    ),
}

Layers = Sequence[tuple[Tensor, Tensor]]


def aesthetic_score(clip: Clip, layers: Layers) -> Score:
    """Return the score of linear layers, (weight, bias) each, on the unit picture embedding."""

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        x = clip.embed_images(images)
        for weight, bias in layers:
            x = x @ weight.T + bias
        return x.squeeze(1)

    return score


def read_layers(weights: Mapping[str, Tensor]) -> Layers:
    """Return the (weight, bias) of each layer of a head: `weight`, or `layers.N.weight`, and so on.

    Raises ValueError for another layout.
    """
    prefixes = [name.removesuffix("weight") for name in weights if name.endswith("weight")]
    prefixes.sort(key=lambda prefix: [int(part) for part in prefix.split(".") if part.isdigit()])
    expected = {f"{prefix}{part}" for prefix in prefixes for part in ("weight", "bias")}
    if not prefixes or expected != set(weights):
        raise ValueError(f"its keys are {', '.join(sorted(weights)[:4]) or 'none'}")
    layers = [
        (weights[f"{prefix}weight"].float(), weights[f"{prefix}bias"].float())
        for prefix in prefixes
    ]
    widths = [weight.shape for weight, _ in layers]
    chained = all(a[0] == b[1] for a, b in pairwise(widths))
    if any(len(shape) != 2 for shape in widths) or not chained or widths[-1][0] != 1:
        raise ValueError(f"its layers are {', '.join(str(tuple(shape)) for shape in widths)}")
    return layers


def combine_scores(scores: Sequence[Score], weights: Sequence[float]) -> Score:
    """Return the weighted mean of scores."""
    if len(scores) == 1:
        return scores[0]

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        terms = [
            weight / sum(weights) * one(images, prompts)
            for one, weight in zip(scores, weights, strict=True)
        ]
        return torch.stack(terms).sum(0)

    return score


def load_head(head: Head, device: torch.device) -> tuple[Clip, Layers, Path]:
    """Return the CLIP of a head, its layers and its file.

    Raises UserError for a file that is missing or of another layout, or does not fit the CLIP.
    """
    file = Path(head.file)
    published = PUBLISHED.get(head.file) or PUBLISHED.get(file.name.removesuffix(".pth"))
    if head.file in PUBLISHED and not file.exists():
        file = fetch_url(PUBLISHED[head.file].url, f"{KEY}={head.file}")
    if not file.is_file():
        names = ", ".join(PUBLISHED)
        raise UserError(f"{KEY}={head.file}: no such file; must be a file or one of {names}")
    try:
        layers = read_layers(torch.load(file, device, weights_only=True))
    except Exception as error:  # what torch raises on damaged files has no common class
        raise UserError(
            f"{KEY}={head.file}: cannot be read ({explain(error)}); must be linear layers, as in "
            "LAION's predictors"
        ) from error
    name, pretrained = head.clip, head.pretrained
    if name is None:
        if published is None:
            raise UserError(f"{KEY}={head.file}: needs a clip; must be the CLIP it was fitted to")
        name, pretrained = published.clip, pretrained or "openai"
    given = f"{KEY}={head.file}: clip={name} {pretrained or ''}".rstrip()
    clip = load_clip(name, pretrained, device, given)
    width = clip.embed_images(torch.zeros(1, 3, 8, 8, device=device)).shape[1]
    if layers[0][0].shape[1] != width:
        raise UserError(
            f"{KEY}={head.file}: takes {layers[0][0].shape[1]} numbers, its clip gives {width}; "
            "must be the CLIP it was fitted to"
        )
    return clip, layers, file


def build_aesthetic(settings: Aesthetic, model: "LatentModel") -> Guidance:
    target = settings.target
    if settings.heads is None:
        clips, weights, facts = [model.clip_a], [1.0], {}
        scores = [aesthetic_score(model.clip_a, [model.aesthetic_head])]
    else:
        heads = [load_head(head, model.device) for head in settings.heads]
        clips = [clip for clip, _, _ in heads]
        weights = [head.weight for head in settings.heads]
        scores = [aesthetic_score(clip, layers) for clip, layers, _ in heads]
        facts = {
            "heads": [
                {"file": str(file.absolute()), "sha256": hash_file(file), "clip": clip.facts}
                for clip, _, file in heads
            ]
        }
    return Guidance(
        score=combine_scores(scores, weights),
        loss_of=torch.neg if target is None else lambda score: (score - target).abs(),
        weight=settings.weight,
        n_crops=settings.n_crops,
        crop_size=max(clip.image_size for clip in clips),
        facts=facts,
    )
