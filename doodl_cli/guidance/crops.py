"""Random square crops, so that a score cannot be raised by a pattern at one scale and place.

The paper's code cuts n squares of side U^power (512 - 224) + 224 from 512 px, placed uniformly,
and pools them to the scorer's size. Here the smallest is the scorer's size or three quarters of
the picture, whichever is smaller against the picture, so that the rule serves small models too.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

POWER = 0.3


def cut(images: Tensor, n: int, size: int, generators: Sequence[Generator]) -> Tensor:
    """Return n crops of each picture, (b n, 3, size, size), sample by sample.

    `images` is (b, 3, h, w); sample k's crops depend on `generators[k]` alone (on the CPU).
    """
    crops = []
    shortest = min(images.shape[-2:])
    smallest = min(size, shortest) if shortest > size else round(0.75 * shortest)
    for image, generator in zip(images, generators, strict=True):
        for side_draw, top_draw, left_draw in torch.rand(n, 3, generator=generator).tolist():
            side = round(side_draw**POWER * (shortest - smallest) + smallest)
            top = round(top_draw * (image.shape[-2] - side))
            left = round(left_draw * (image.shape[-1] - side))
            crops.append(resize(image[None, :, top : top + side, left : left + side], size))
    return torch.cat(crops)


def resize(images: Tensor, size: int) -> Tensor:
    """Average-pool large pictures to size x size, interpolate small ones."""
    if min(images.shape[-2:]) >= size:
        return F.adaptive_avg_pool2d(images, size)
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
