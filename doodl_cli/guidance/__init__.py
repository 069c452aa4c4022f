"""Losses on the finished picture: a raw score, what is minimised of it, and random crops.

A guidance is plain data: any differentiable score of pictures and prompts can be one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from doodl_cli.config import Aesthetic, ClipText, GuidanceSettings
from doodl_cli.guidance.crops import cut
from doodl_cli.guidance.scores import colourfulness, symmetry

if TYPE_CHECKING:
    from doodl_cli.models.clip import Clip
    from doodl_cli.models.latent_model import LatentModel

Score = Callable[[Tensor, Sequence[str]], Tensor]


@dataclass(frozen=True)
class Guidance:
    """One term of the loss.

    `score` takes pictures (b, 3, h, w) in [-1, 1] and b prompts and returns the raw score (b,),
    higher is better; `loss_of` turns scores into losses, element by element. With `n_crops` the
    loss is the mean or the minimum over that many crops at `crop_size`.
    """

    score: Score
    loss_of: Callable[[Tensor], Tensor] = torch.neg
    weight: float = 1.0
    n_crops: int = 0
    crop_size: int = 64
    reduce: str = "mean"

    def loss(
        self, images: Tensor, prompts: Sequence[str], generators: Sequence[Generator]
    ) -> Tensor:
        """Return the loss (b,), on crops drawn from each sample's own generator."""
        if not self.n_crops:
            return self.loss_of(self.score(images, prompts))
        crops = cut(images, self.n_crops, self.crop_size, generators)
        repeated = [prompt for prompt in prompts for _ in range(self.n_crops)]
        losses = self.loss_of(self.score(crops, repeated)).view(len(images), self.n_crops)
        return losses.amin(1) if self.reduce == "min" else losses.mean(1)


def spherical_distance(similarity: Tensor) -> Tensor:
    """Return 2 asin(|x - y| / 2)^2 for unit vectors x, y with the cosine similarity x . y."""
    half_chord = ((1 - similarity) / 2).clamp_min(1e-12).sqrt()
    return 2 * torch.asin(half_chord.clamp_max(1.0)).square()


def text_similarity(clip: "Clip") -> Score:
    """Return the score x . y between a picture's and its prompt's embedding, in [-1, 1]."""
    known: dict[str, Tensor] = {}

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if new:
            known.update(zip(new, clip.embed_texts(new), strict=True))
        texts = torch.stack([known[prompt] for prompt in prompts])
        return (clip.embed_images(images) * texts).sum(1)

    return score


def aesthetic_score(clip: "Clip", weight: Tensor, bias: Tensor) -> Score:
    """Return a linear head's score of the unit picture embedding, not clamped (LAION's form)."""

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (clip.embed_images(images) @ weight.T + bias).squeeze(1)

    return score


def ignore_prompts(function: Callable[[Tensor], Tensor]) -> Score:
    """Return a score that looks at the picture alone."""
    return lambda images, prompts: function(images)


def build_guidance(
    settings: Mapping[str, GuidanceSettings], model: "LatentModel"
) -> dict[str, Guidance]:
    """Return the named guidances, their scorers taken from the model's own."""
    return {name: BUILDERS[name](chosen, model) for name, chosen in settings.items()}


def build_aesthetic(settings: Aesthetic, model: "LatentModel") -> Guidance:
    target = settings.target
    return Guidance(
        score=aesthetic_score(model.clip_a, *model.aesthetic_head),
        loss_of=torch.neg if target is None else lambda score: (score - target).abs(),
        weight=settings.weight,
        n_crops=settings.n_crops,
        crop_size=model.clip_a.image_size,
    )


def build_clip_text(settings: ClipText, model: "LatentModel") -> Guidance:
    return Guidance(
        score=text_similarity(model.clip_a),
        loss_of=spherical_distance,
        weight=settings.weight,
        n_crops=settings.n_crops,
        crop_size=model.clip_a.image_size,
        reduce=settings.reduce,
    )


def build_pixels(function: Callable[[Tensor], Tensor]) -> Callable[..., Guidance]:
    """Return the builder of a score on pixels, which takes crops at 64 px if any."""

    def build(settings: GuidanceSettings, model: "LatentModel") -> Guidance:
        return Guidance(ignore_prompts(function), weight=settings.weight, n_crops=settings.n_crops)

    return build


BUILDERS: dict[str, Callable[..., Guidance]] = {
    "aesthetic": build_aesthetic,
    "clip_text": build_clip_text,
    "colourfulness": build_pixels(colourfulness),
    "symmetry": build_pixels(symmetry),
}


EVALUATORS: dict[str, Callable[["LatentModel"], Score]] = {
    "aesthetic": lambda model: aesthetic_score(model.clip_a, *model.aesthetic_head),
    "clip_text": lambda model: text_similarity(model.clip_a),
    "clip_text_b": lambda model: text_similarity(model.clip_b),
    "colourfulness": lambda model: ignore_prompts(colourfulness),
    "symmetry": lambda model: ignore_prompts(symmetry),
}


def build_evaluation(names: Iterable[str], model: "LatentModel") -> dict[str, Score]:
    """Return the named scorers that measure and never enter the loss."""
    return {name: EVALUATORS[name](model) for name in names}
