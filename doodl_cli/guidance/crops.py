"""Random square crops, so that a score cannot be raised by a pattern at one scale and place.

The paper's code cuts n squares of side U^power (512 - 224) + 224 from 512 px, placed uniformly,
and pools them to the scorer's size. Here the smallest is the scorer's size or three quarters of
the picture, whichever is smaller against the picture, so that the rule serves small models too.

Cutting and resizing are linear along each side: a crop is R X C^T, with a matrix for the rows and
one for the columns, and all crops of a batch are two products.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

POWER = 0.3


def cut(images: Tensor, n: int, size: int, generators: Sequence[Generator]) -> Tensor:
    """Return n crops of each picture, (b n, 3, size, size), sample by sample.

    `images` is (b, 3, h, w); sample k's crops depend on `generators[k]` alone (on the CPU).
    Crops of at least `size` pixels are average-pooled, smaller ones interpolated bilinearly.
    """
    height, width = images.shape[-2:]
    shortest = min(height, width)
    smallest = min(size, shortest) if shortest > size else round(0.75 * shortest)
    draws = torch.stack([torch.rand(n, 3, generator=generator) for generator in generators])
    of_side, of_top, of_left = draws.to(images.device).double().unbind(-1)  # (b, n)
    side = (of_side**POWER * (shortest - smallest) + smallest).round()
    rows = resizing((of_top * (height - side)).round(), side, height, size).to(images)
    columns = resizing((of_left * (width - side)).round(), side, width, size).to(images)
    across = torch.einsum("bchw,bnjw->bnchj", images, columns)
    return torch.einsum("bnih,bnchj->bncij", rows, across).flatten(0, 1)


def resizing(start: Tensor, side: Tensor, length: int, size: int) -> Tensor:
    """Return the matrices (..., size, length) that resize `side` of `length` pixels from `start`.

    Those of at least `size` pixels are pooled as by adaptive_avg_pool2d, fewer interpolated as by
    interpolate(mode="bilinear"). `start` and `side` (...) are whole numbers in floating point.
    """
    start, side = start[..., None, None], side[..., None, None]
    pixel = torch.arange(length, dtype=side.dtype, device=side.device) - start
    target = torch.arange(size, dtype=side.dtype, device=side.device)[:, None]
    first, end = (target * side / size).floor(), ((target + 1) * side / size).ceil()
    pooled = ((pixel >= first) & (pixel < end)) / (end - first)
    centre = ((target + 0.5) * side / size - 0.5).clamp(min=0).minimum(side - 1)
    interpolated = (1 - (pixel - centre).abs()).clamp(min=0)
    return torch.where(side >= size, pooled, interpolated)
