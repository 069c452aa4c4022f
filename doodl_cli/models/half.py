"""Gradients through networks that compute in half precision, whose small numbers become zero there.

A vector-Jacobian product is linear in the cotangent, so it can be taken of the cotangent scaled by
a power of two to a maximum near 1, and scaled back: exact, and nothing underflows.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from doodl_cli.sampling.solve import power_of_two


def in_half(function: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return function(x.to(dtype)) in float32, x's gradient taken of scaled cotangents.

    The first dimension of x and of the value is the samples'; each has its own scale.
    """
    scales: list[Tensor] = []
    out = function(ScaleBack.apply(x.float(), scales).to(dtype)).float()
    return Scale.apply(out, scales)


class Scale(torch.autograd.Function):
    """The identity, whose backward pass scales the cotangent and notes the scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: list[Tensor]) -> Tensor:
        ctx.scales = scales
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        scale = power_of_two(cotangents[0])
        ctx.scales.append(scale)
        return cotangents[0] / scale, None


class ScaleBack(torch.autograd.Function):
    """The identity, whose backward pass takes back the scale that `Scale` noted."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: list[Tensor]) -> Tensor:
        ctx.scales = scales
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None]:
        scale = ctx.scales.pop().flatten()
        return cotangents[0] * scale.view(-1, *[1] * (cotangents[0].ndim - 1)), None
