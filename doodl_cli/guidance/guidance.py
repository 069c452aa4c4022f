"""One term of the loss: a raw score of pictures, what is minimised of it, and random crops.

A guidance is plain data: any differentiable score of pictures and prompts can be one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Generator, Tensor

from doodl_cli.guidance.crops import cut

Score = Callable[[Tensor, Sequence[str]], Tensor]


class Prompt(str):
    """A sample's text, with the class and the picture of reference that are its own, if any."""

    target: str | int | None
    image: str | None

    def __new__(cls, text: str, target: str | int | None = None, image: str | None = None) -> Self:
        prompt = super().__new__(cls, text)
        prompt.target, prompt.image = target, image
        return prompt


@dataclass(frozen=True)
class Guidance:
    """One term of the loss.

    `score` takes pictures (b, 3, h, w) in [-1, 1] and b prompts and returns the raw score (b,),
    higher is better; `loss_of` turns scores into losses, element by element. With `n_crops` the
    loss is the mean or the minimum over that many crops at `crop_size`. `facts` is what
    metadata.json says about the scorer.
    """

    score: Score
    loss_of: Callable[[Tensor], Tensor] = torch.neg
    weight: float = 1.0
    n_crops: int = 0
    crop_size: int = 64
    reduce: str = "mean"
    facts: Mapping[str, Any] = field(default_factory=dict)

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


def ignore_prompts(function: Callable[[Tensor], Tensor]) -> Score:
    """Return a score that looks at the picture alone."""
    return lambda images, prompts: function(images)
