"""The one loop over a table: forwards, backwards, and backwards with a cotangent.

A row, its inverse and its adjoint (transposed Jacobian) read, line by line,

    n = A u + B v + C net(v, t)         (u, v) <- M (n, v)                       generate
    (n, v) <- M^-1 (u, v)               u = (n - B v - C net(v, t)) / A          invert
    (g_n, g_v) <- M^T (g_u, g_v)        g_u = A g_n,  g_v += B g_n + C J^T g_n   pull back

The inverse and the adjoint need the network at the same point (v, t): one evaluation with
gradient and one vector-Jacobian product serve both, and nothing is kept from the way forwards.
Latents are (b, c, h, w); the state keeps its own dtype (float64), whatever the network computes in.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from doodl_cli.sampling.table import Matrix, Row, Table, inverse, transpose

Pair = tuple[Tensor, Tensor]


class Net(Protocol):
    """The network's raw output at (x, t), guidance included; any callable on tensors will do."""

    def __call__(self, x: Tensor, t: int) -> Tensor: ...


def solve(table: Table, net: Net, pair: Pair, visited: list[Tensor] | None = None) -> Pair:
    """Return the pair at x_0 for a pair at x_T. `visited` collects the v of every row."""
    u, v = pair
    for row in table.rows:
        if visited is not None:
            visited.append(v)
        n = row.A * u + row.B * v
        if row.C:
            n = n + row.C * net(v, row.t).to(v.dtype)
        u, v = mix(row.M, n, v)
    return u, v


@torch.no_grad()
def invert(table: Table, net: Net, pair: Pair) -> Pair:
    """Return the pair at x_T that `solve` takes to this pair at x_0."""
    u, v = pair
    for row in reversed(table.rows):
        n, v = mix(inverse(row.M), u, v)
        u = undo(row, n, v, net(v, row.t).to(v.dtype) if row.C else None)
    return u, v


@torch.no_grad()
def pull_back(
    table: Table, net: Net, pair: Pair, cotangent: Pair, visited: Sequence[Tensor] | None = None
) -> tuple[Pair, Pair]:
    """Carry a cotangent of the pair at x_0 back to x_T: g^T d(u, v)_0 / d(u, v)_T.

    Without `visited` the states are recovered on the way by inverting each row, and the pair at
    x_T that was recovered comes back with the gradient. With `visited` (as `solve` collected them)
    nothing is inverted and `pair` comes back as it was.

    Returns (pair, gradient), both of two tensors (b, c, h, w).
    """
    (u, v), (g_u, g_v) = pair, cotangent
    for i, row in reversed(list(enumerate(table.rows))):
        if visited is None:
            n, v = mix(inverse(row.M), u, v)
        else:
            v = visited[i]
        g_n, g_v = mix(transpose(row.M), g_u, g_v)
        g_u, g_v = row.A * g_n, g_v + row.B * g_n
        out = None
        if row.C:
            out, vjp = value_and_vjp(net, v, row.t, row.C * g_n)
            g_v = g_v + vjp
        if visited is None:
            u = undo(row, n, v, out)
    return (u, v) if visited is None else pair, (g_u, g_v)


def undo(row: Row, n: Tensor, v: Tensor, out: Tensor | None) -> Tensor:
    """Solve n = A u + B v + C out for u."""
    rest = n - row.B * v
    if out is not None:
        rest = rest - row.C * out
    return rest / row.A


def mix(m: Matrix, n: Tensor, v: Tensor) -> Pair:
    """Return m (n, v)."""
    return combine(m[0], n, v), combine(m[1], n, v)


def combine(weights: tuple[float, float], n: Tensor, v: Tensor) -> Tensor:
    """Return a n + b v, without copying where the weights only select."""
    a, b = weights
    if (a, b) == (1.0, 0.0):
        return n
    if (a, b) == (0.0, 1.0):
        return v
    return a * n + b * v


def value_and_vjp(net: Net, x: Tensor, t: int, cotangent: Tensor) -> Pair:
    """Return net(x, t) and cotangent^T d net / d x, both in x's dtype."""
    x, out = evaluate(net, x, t)
    return out.detach(), vjp(out, x, cotangent)


@torch.enable_grad()
def evaluate(net: Net, x: Tensor, t: int) -> Pair:
    """Return x as a leaf, and net(x, t) in its dtype with the graph between them."""
    x = x.detach().requires_grad_()
    return x, net(x, t).to(x.dtype)


def vjp(out: Tensor, x: Tensor, cotangent: Tensor) -> Tensor:
    """Return cotangent^T d out / d x.

    The product is linear in the cotangent, so each sample's is first scaled by a power of two to a
    maximum near 1: exact, and half-precision gradients do not underflow.
    """
    scale = power_of_two(cotangent)
    (product,) = torch.autograd.grad(out, x, cotangent / scale)
    return product * scale


def power_of_two(cotangent: Tensor) -> Tensor:
    """Return each sample's largest power of two (b, 1, ...) that its largest element reaches."""
    largest = cotangent.abs().amax(dim=tuple(range(1, cotangent.ndim)), keepdim=True)
    tiny = torch.finfo(cotangent.dtype).tiny
    return torch.exp2(torch.floor(torch.log2(largest.clamp_min(tiny))))
