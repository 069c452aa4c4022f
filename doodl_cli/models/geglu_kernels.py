"""GEGLU in Triton, differentiable: value gelu(gate) for (value, gate) side by side.

Shazeer 2020, arXiv 2002.05202, with gelu(x) = x Phi(x) (Hendrycks and Gimpel 2016, 1606.08415), so
that gelu'(x) = Phi(x) + x phi(x). One pass each way, where PyTorch takes two and four. All
arithmetic is float32.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from doodl_cli.models.norm_kernels import load

N_ROWS, N_COLUMNS = 8, 256  # of a tile


def geglu(x: Tensor) -> Tensor:
    """Return value gelu(gate), (..., d), of x (..., 2 d), the values first, in x's dtype."""
    return GEGLU.apply(x)


class GEGLU(torch.autograd.Function):
    """`geglu` as autograd sees it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
        with torch.cuda.device_of(x):
            gate_values[grid(out)](x, out, **sizes(out))
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        cotangent, vjp = cotangents[0].contiguous(), torch.empty_like(x)
        with torch.cuda.device_of(x):
            pull_back[grid(cotangent)](x, cotangent, vjp, **sizes(cotangent))
        return vjp


def grid(out: Tensor) -> tuple[int, int]:
    """One program a tile of out (..., d)."""
    d = out.shape[-1]
    return triton.cdiv(out.numel() // d, N_ROWS), triton.cdiv(d, N_COLUMNS)


def sizes(out: Tensor) -> dict[str, int]:
    """What the kernels are told of out (..., d)."""
    d = out.shape[-1]
    return {"n": out.numel() // d, "d": d, "R": N_ROWS, "C": N_COLUMNS}


@triton.jit
def place(n, d, R: tl.constexpr, C: tl.constexpr):
    """Return the offsets (R, C) of a program's tile in out, of its values in x, and which exist."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)[:, None]
    column = tl.program_id(1) * C + tl.arange(0, C)[None, :]
    return row * d + column, row * 2 * d + column, (row < n) & (column < d)


@triton.jit
def normal_cdf(x):
    """Return Phi(x)."""
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit(do_not_specialize=["n"])
def gate_values(x, out, n, d, R: tl.constexpr, C: tl.constexpr):
    """Store value gelu(gate) of a tile."""
    at, there, exists = place(n, d, R, C)
    gate = load(x, there + d, exists)
    tl.store(out + at, load(x, there, exists) * gate * normal_cdf(gate), mask=exists)


@triton.jit(do_not_specialize=["n"])
def pull_back(x, cotangent, vjp, n, d, R: tl.constexpr, C: tl.constexpr):
    """Store the gradients by the values and the gates of a tile."""
    at, there, exists = place(n, d, R, C)
    g = load(cotangent, at, exists)
    gate = load(x, there + d, exists)
    below = normal_cdf(gate)
    slope = below + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    tl.store(vjp + there, g * gate * below, mask=exists)
    tl.store(vjp + there + d, g * load(x, there, exists) * slope, mask=exists)
