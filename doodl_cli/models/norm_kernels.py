"""GroupNorm with SiLU for channels-last tensors in Triton, differentiable by the input alone.

GroupNorm (Wu and He 2018, arXiv 1803.08494), with the mean and rstd of x over the channels of a
group and all positions of a sample:

    z = (x - mean) rstd,   y = weight z + bias,   out = silu(y), or y

Its gradient for frozen weights, where g = weight d loss / d y and <.> is that same average:

    d loss / d x = rstd (g - <g> - z <z g>)

A tensor is seen as (n, p, c), samples, positions and channels, the channels adjacent in memory.
Both directions take three kernels. The first reduces tiles of positions, each channel apart: rows
of memory are read whole, whatever a group's size, and there are enough programs at small sizes.
The second reduces the tiles' results over tiles and groups, the third applies. x is read twice, and
kept for the gradient instead of z. There are no atomics: the bits are the same every time, with or
without a gradient, in a batch or alone. All arithmetic is float32. All shapes of a network share
six compiled kernels, because compiling takes longer than all that they save in a short run.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

N_POSITIONS = 64  # of a tile
N_CHANNELS = 64  # of a tile at most: in half precision one line of the cache
N_REDUCED = 2048  # numbers that the second kernel reduces at a time


def group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, n_groups: int, eps: float, silu: bool
) -> Tensor:
    """Return the group norm of x (n, c, ...), or the SiLU of it, in x's dtype, channels last.

    `weight` and `bias` are (c,) and get no gradient; n_groups divides c. An x whose channels are
    not adjacent is copied first.
    """
    return GroupNorm.apply(x, weight, bias, n_groups, eps, silu)


class GroupNorm(torch.autograd.Function):
    """`group_norm` as autograd sees it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, n_groups: int, eps: float, silu: bool
    ) -> Tensor:
        rows = as_rows(x)
        n, p, c = rows.shape
        cut = Cut(n, p, c, n_groups)
        with torch.cuda.device_of(x):
            mean, rstd = find_moments(rows, cut, eps)
            out = empty_last(x)
            normalise[cut.grid](rows, weight, bias, mean, rstd, out, silu, **cut.sizes)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.cut, ctx.silu = cut, silu
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        given = (as_rows(x), *rest, as_rows(cotangents[0]))
        with torch.cuda.device_of(x):
            averages = find_averages(given, ctx.cut, ctx.silu)
            vjp = empty_last(x)
            pull_back[ctx.cut.grid](*given, *averages, vjp, ctx.silu, **ctx.cut.sizes)
        return vjp, None, None, None, None, None


def as_rows(x: Tensor) -> Tensor:
    """Return x (n, c, ...) as (n, p, c); of channels-last memory it is a view."""
    return x.flatten(2).transpose(1, 2).contiguous()


def empty_last(x: Tensor) -> Tensor:
    """Return room for a tensor in the shape of x (n, c, ...) whose memory is (n, p, c)."""
    n, c, *spatial = x.shape
    strides = x.new_empty(n, *spatial, c, device="meta").movedim(-1, 1).stride()
    return x.new_empty_strided(x.shape, strides)


@dataclass(frozen=True)
class Cut:
    """How a tensor (n, p, c) is cut into tiles. It depends on n in the number of tiles alone."""

    n: int
    p: int
    c: int
    n_groups: int

    @property
    def n_channels(self) -> int:
        """Channels of a tile, a power of two."""
        return min(N_CHANNELS, triton.next_power_of_2(self.c))

    @property
    def grid(self) -> tuple[int, int, int]:
        """One program a tile."""
        return triton.cdiv(self.p, N_POSITIONS), triton.cdiv(self.c, self.n_channels), self.n

    @property
    def sizes(self) -> dict[str, int]:
        """What the kernels of one program a tile are told."""
        return {"p": self.p, "c": self.c, "n_groups": self.n_groups, "P": N_POSITIONS,
                "C": self.n_channels}  # fmt: skip

    @property
    def reduction(self) -> dict[str, int]:
        """What the kernels of one program a group are told."""
        return {"p": self.p, "c": self.c, "P": N_POSITIONS, "N": N_REDUCED}

    def results(self, x: Tensor) -> Tensor:
        """Return room for two numbers (2, n, tiles, c) a tile and channel."""
        return x.new_empty(2, self.n, self.grid[0], self.c, dtype=torch.float32)

    def reduced(self, x: Tensor) -> Tensor:
        """Return room for two numbers (2, n, n_groups) a sample and group."""
        return x.new_empty(2, self.n, self.n_groups, dtype=torch.float32)


def find_moments(x: Tensor, cut: Cut, eps: float) -> Tensor:
    """Return mean and rstd (2, n, n_groups) of rows (n, p, c)."""
    parts, moments = cut.results(x), cut.reduced(x)
    measure[cut.grid](x, *parts, **cut.sizes)
    combine[cut.n_groups, cut.n](*parts, *moments, eps, **cut.reduction)
    return moments


def find_averages(given: tuple[Tensor, ...], cut: Cut, silu: bool) -> Tensor:
    """Return <g> and <z g> (2, n, n_groups), of what `pull_back` is given besides."""
    parts, averages = cut.results(given[0]), cut.reduced(given[0])
    measure_cotangent[cut.grid](*given, *parts, silu, **cut.sizes)
    average[cut.n_groups, cut.n](*parts, *averages, **cut.reduction)
    return averages


@triton.jit
def place(p, c, P: tl.constexpr, C: tl.constexpr):
    """Return the offsets (P, C) of a program's tile, which of them exist, and its channels (C,)."""
    position = tl.program_id(0) * P + tl.arange(0, P)
    channel = tl.program_id(1) * C + tl.arange(0, C)
    exists = (position < p)[:, None] & (channel < c)[None, :]
    sample = tl.program_id(2).to(tl.int64) * p * c
    return sample + position[:, None] * c + channel[None, :], exists, channel


@triton.jit
def load(numbers, at, exists):
    """Return numbers in float32, 0 where none exist."""
    return tl.load(numbers + at, mask=exists, other=0.0).to(tl.float32)


@triton.jit
def count(tile, p, P: tl.constexpr):
    """Return how many positions tiles have."""
    return tl.minimum(P, p - tile * P)


@triton.jit
def store_results(firsts, first, seconds, second, c, C: tl.constexpr):
    """Store two numbers (C,) for a tile's channels."""
    channel = tl.program_id(1) * C + tl.arange(0, C)
    at = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * c + channel
    tl.store(firsts + at, first, mask=channel < c)
    tl.store(seconds + at, second, mask=channel < c)


@triton.jit
def count_results(p, c, P: tl.constexpr):
    """Return how many numbers the tiles stored for a program's group."""
    return tl.cdiv(p, P) * (c // tl.num_programs(0))


@triton.jit
def place_results(start, p, c, P: tl.constexpr, N: tl.constexpr):
    """Return the offsets (N,) of what tiles stored for a group, which exist, and their tiles."""
    n_tiles, size = tl.cdiv(p, P), c // tl.num_programs(0)
    i = start + tl.arange(0, N)
    tile = i // size
    at = (tl.program_id(1) * n_tiles + tile) * c + tl.program_id(0) * size + i % size
    return at, i < n_tiles * size, tile


@triton.jit(do_not_specialize=["p"])
def measure(x, means, squares, p, c, n_groups, P: tl.constexpr, C: tl.constexpr):
    """Store the mean of each channel in a tile, and the sum of squared deviations from it."""
    at, exists, _ = place(p, c, P, C)
    values = load(x, at, exists)
    mean = tl.sum(values, 0) / count(tl.program_id(0), p, P)
    deviation = tl.where(exists, values - mean[None, :], 0.0)
    store_results(means, mean, squares, tl.sum(deviation * deviation, 0), c, C)


@triton.jit(do_not_specialize=["p"])
def combine(means, squares, mean, rstd, eps, p, c, P: tl.constexpr, N: tl.constexpr):
    """Store a group's mean and 1 / sqrt(variance + eps), of tiles' (Chan et al. 1983)."""
    n_elements = p * (c // tl.num_programs(0))
    total = 0.0
    for start in range(0, count_results(p, c, P), N):
        at, exists, tile = place_results(start, p, c, P, N)
        total += tl.sum(count(tile, p, P) * load(means, at, exists))
    centre = total / n_elements
    total = 0.0
    for start in range(0, count_results(p, c, P), N):
        at, exists, tile = place_results(start, p, c, P, N)
        between = load(means, at, exists) - centre
        square = load(squares, at, exists) + count(tile, p, P) * between * between
        total += tl.sum(tl.where(exists, square, 0.0))
    group = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(mean + group, centre)
    tl.store(rstd + group, 1 / tl.sqrt(total / n_elements + eps))


@triton.jit
def load_channels(numbers, channel, c):
    """Return numbers (c,) of the channels as (1, C)."""
    return load(numbers, channel, channel < c)[None, :]


@triton.jit
def load_groups(numbers, channel, c, n_groups):
    """Return numbers (n, n_groups) of the channels' groups as (1, C)."""
    group = tl.program_id(2) * n_groups + channel // (c // n_groups)
    return load(numbers, group, channel < c)[None, :]


@triton.jit(do_not_specialize=["silu", "p"])
def normalise(x, weight, bias, mean, rstd, out, silu, p, c, n_groups, P: tl.constexpr,
              C: tl.constexpr):  # fmt: skip
    """Store y of a tile, or its SiLU."""
    at, exists, channel = place(p, c, P, C)
    z = load(x, at, exists) - load_groups(mean, channel, c, n_groups)
    z *= load_groups(rstd, channel, c, n_groups)
    y = load_channels(weight, channel, c) * z + load_channels(bias, channel, c)
    if silu:
        y *= tl.sigmoid(y)
    tl.store(out + at, y, mask=exists)


@triton.jit
def pull_to_z(x, weight, bias, mean, rstd, cotangent, silu, p, c, n_groups, P: tl.constexpr,
              C: tl.constexpr):  # fmt: skip
    """Return g and z (P, C) of a tile; g is 0 where nothing exists."""
    at, exists, channel = place(p, c, P, C)
    z = load(x, at, exists) - load_groups(mean, channel, c, n_groups)
    z *= load_groups(rstd, channel, c, n_groups)
    scale = load_channels(weight, channel, c)
    g = scale * load(cotangent, at, exists)
    if silu:
        y = scale * z + load_channels(bias, channel, c)
        sigmoid = tl.sigmoid(y)
        g *= sigmoid * (1 + y * (1 - sigmoid))
    return g, z


@triton.jit(do_not_specialize=["silu", "p"])
def measure_cotangent(x, weight, bias, mean, rstd, cotangent, sums, products, silu, p, c, n_groups,
                      P: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Store the sums of g and of z g over a tile, each channel apart."""
    g, z = pull_to_z(x, weight, bias, mean, rstd, cotangent, silu, p, c, n_groups, P, C)
    store_results(sums, tl.sum(g, 0), products, tl.sum(z * g, 0), c, C)


@triton.jit(do_not_specialize=["p"])
def average(sums, products, mean_g, mean_zg, p, c, P: tl.constexpr, N: tl.constexpr):
    """Store <g> and <z g> of a group."""
    n_elements = p * (c // tl.num_programs(0))
    g, zg = 0.0, 0.0
    for start in range(0, count_results(p, c, P), N):
        at, exists, _ = place_results(start, p, c, P, N)
        g += tl.sum(load(sums, at, exists))
        zg += tl.sum(load(products, at, exists))
    group = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(mean_g + group, g / n_elements)
    tl.store(mean_zg + group, zg / n_elements)


@triton.jit(do_not_specialize=["silu", "p"])
def pull_back(x, weight, bias, mean, rstd, cotangent, mean_g, mean_zg, vjp, silu, p, c, n_groups,
              P: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Store d loss / d x of a tile."""
    g, z = pull_to_z(x, weight, bias, mean, rstd, cotangent, silu, p, c, n_groups, P, C)
    at, exists, channel = place(p, c, P, C)
    g -= load_groups(mean_g, channel, c, n_groups) + z * load_groups(mean_zg, channel, c, n_groups)
    tl.store(vjp + at, load_groups(rstd, channel, c, n_groups) * g, mask=exists)
