"""How near a picture is to its prompt, or to reference pictures, in the space of a CLIP.

The loss is the spherical distance between unit embeddings (DOODL, Wallace et al. 2023), to a text
or to the mean embedding of the references (personalisation).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl_cli.config import ClipImage, Clips, ClipText
from doodl_cli.guidance.guidance import Guidance, Score
from doodl_cli.guidance.references import find_references, read_reference
from doodl_cli.models.clip import Clip, load_clip
from doodl_cli.models.locate import hash_file

if TYPE_CHECKING:
    from doodl_cli.models.latent_model import LatentModel


KNOWN_AT_MOST = 1000  # texts whose embeddings are kept


class Embedder(Protocol):
    """Pictures (b, 3, h, w) in [-1, 1] and texts to unit vectors (b, d)."""

    def embed_images(self, images: Tensor) -> Tensor: ...

    def embed_texts(self, texts: list[str]) -> Tensor: ...


def spherical_distance(similarity: Tensor) -> Tensor:
    """Return 2 asin(|x - y| / 2)^2 for unit vectors x, y with the cosine similarity x . y."""
    half_chord = ((1 - similarity) / 2).clamp_min(1e-12).sqrt()
    return 2 * torch.asin(half_chord.clamp_max(1.0)).square()


def text_similarity(clip: Embedder) -> Score:
    """Return the score x . y between a picture's and its prompt's embedding, in [-1, 1]."""
    known: dict[str, Tensor] = {}

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if new:
            if len(known) > KNOWN_AT_MOST:  # thousands of prompts, a batch after another
                known.clear()
                new = list(dict.fromkeys(prompts))
            known.update(zip(new, clip.embed_texts(new), strict=True))
        texts = torch.stack([known[prompt] for prompt in prompts])
        return (clip.embed_images(images) * texts).sum(1)

    return score


@torch.no_grad()
def embed_references(clip: Embedder, references: Sequence[Tensor]) -> Tensor:
    """Return the unit mean (d,) of the embeddings of pictures (3, h, w) in [-1, 1], square."""
    embeddings = torch.cat([clip.embed_images(picture[None]) for picture in references])
    return F.normalize(embeddings.mean(0), dim=0)


def image_similarity(
    clip: Embedder, references: Sequence[Tensor], read: Callable[[str], Tensor] | None = None
) -> Score:
    """Return the score x . y between a picture's embedding and that of its references.

    These are each prompt's own picture, which `read` reads, or else `references`.
    """
    known: dict[str | None, Tensor] = {}
    if references:
        known[None] = embed_references(clip, references)

    def find(prompt: str) -> Tensor:
        path = getattr(prompt, "image", None)
        if path not in known:
            assert path is not None  # checked with the rows
            assert read is not None
            known[path] = embed_references(clip, [read(path)])
        return known[path]

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        means = torch.stack([find(prompt) for prompt in prompts])
        return (clip.embed_images(images) * means).sum(1)

    return score


def combine_similarities(scores: Sequence[Score], weights: Sequence[float]) -> Score:
    """Return the score whose spherical distance is the weighted mean of the scores' distances.

    A distance is half the squared angle, so this is the cosine of the root mean square angle: still
    a similarity in [-1, 1], whatever the number of models.
    """
    if len(scores) == 1:
        return scores[0]

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        distances = [
            weight / sum(weights) * spherical_distance(one(images, prompts))
            for one, weight in zip(scores, weights, strict=True)
        ]
        return torch.cos((2 * torch.stack(distances).sum(0)).sqrt())

    return score


def build_clip_text(settings: ClipText, model: "LatentModel") -> Guidance:
    return build(settings, model, "clip_text", text_similarity)


def build_clip_image(settings: ClipImage, model: "LatentModel") -> Guidance:
    paths = find_references(settings.images)
    guidance = build(
        settings, model, "clip_image", lambda clip: reference_similarity(clip, settings, model)
    )
    images = {str(path): hash_file(path) for path in paths}
    return replace(guidance, facts={**guidance.facts, "images": images})


def reference_similarity(clip: Clip, settings: ClipImage, model: "LatentModel") -> Score:
    """Return the similarity to the pictures that a configuration or each prompt names."""

    def read(path: str | Path) -> Tensor:
        return read_reference(Path(path)).to(model.device)

    return image_similarity(clip, [read(p) for p in find_references(settings.images)], read)


def build(
    settings: Clips, model: "LatentModel", name: str, make: Callable[[Clip], Score]
) -> Guidance:
    """Return a guidance by the model's own CLIPs or by the ones that are named."""
    if settings.clips is None:
        clips = model.guiding_clips
        weights = [1.0] * len(clips)
    else:
        clips = [
            load_clip(
                choice.name,
                choice.pretrained,
                model.device,
                f"guidance.{name}.clips={choice.name} {choice.pretrained or ''}".rstrip(),
            )
            for choice in settings.clips
        ]
        weights = [choice.weight for choice in settings.clips]
    return Guidance(
        score=combine_similarities([make(clip) for clip in clips], weights),
        loss_of=spherical_distance,
        weight=settings.weight,
        n_crops=settings.n_crops,
        crop_size=max(clip.image_size for clip in clips),
        reduce=settings.reduce,
        facts={"clips": [clip.facts for clip in clips]},
    )
