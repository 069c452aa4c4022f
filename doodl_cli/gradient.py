"""The exact gradient of a loss on x_0 with respect to the pair at x_T, in three memory modes.

    reversible   keeps the final pair and inverts the sampler on the way back (DOODL, Wallace et
                 al. 2023, arXiv 2303.13703); memory does not grow with the number of steps
    checkpoint   keeps v of each row; the same cost, and immune to rounding
    full         keeps the whole autograd graph: the reference

The authors' released code keeps the input of each step too (`keep_input=True`), so what it runs
is `checkpoint`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from doodl_cli.sampling.solve import Net, Pair, pull_back, solve
from doodl_cli.sampling.table import Table

MEMORY_MODES = ("auto", "reversible", "checkpoint", "full")
TOLERABLE_ROUND_TRIP = 1e-6
SMALL_GRAPH = 2**29  # bytes

Loss = Callable[[Tensor], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Gradient:
    """What one differentiation found.

    `loss` (b,): the mean over the slots that hold x_0. `pair`: d sum(loss) / d pair, two tensors
    (b, c, h, w). `x_0`: the final pair. `aux`: what the loss returned beside its value, a slot
    each. `round_trip_error` (b,): largest difference between the pair at x_T and the one
    recovered, NaN where nothing was inverted.
    """

    loss: Tensor
    pair: Pair
    x_0: Pair
    aux: list[Any]
    round_trip_error: Tensor


def choose_memory(table: Table, memory: str = "auto", bytes_per_call: float = math.inf) -> str:
    """Return the mode for a table: what `auto` stands for, else `memory` itself.

    A small network's whole graph may be kept, which saves the evaluations on the way back:
    `bytes_per_call` is what one of them holds. Else `auto` inverts where the predicted round trip
    is harmless.

    Raises ValueError for an unknown mode, or `reversible` on a table that cannot be inverted.
    """
    if memory not in MEMORY_MODES:
        raise ValueError(f"memory={memory}: must be one of {', '.join(MEMORY_MODES)}")
    if memory == "reversible" and not table.invertible:
        raise ValueError(
            f"memory=reversible: sampler={table.name} cannot be inverted; "
            "use memory=checkpoint, or sampler=edict, bdia or obelm"
        )
    if memory != "auto":
        return memory
    if table.n_calls * bytes_per_call <= SMALL_GRAPH:
        return "full"
    predicted = table.growth * torch.finfo(torch.float64).eps
    return "reversible" if predicted < TOLERABLE_ROUND_TRIP else "checkpoint"


def count_saved_bytes(net: Net, x: Tensor, t: int) -> int:
    """Return how many bytes one evaluation of a network keeps for its gradient by x."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf:  # weights are kept anyhow
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        net(x.detach().requires_grad_(), t)
    return sum(sizes.values())


def differentiate(
    table: Table, net: Net, pair: Pair, loss: Loss, memory: str = "reversible"
) -> Gradient:
    """Generate from `pair` (two tensors (b, c, h, w)) and differentiate `loss` at the result.

    `loss` takes x_0 (b, c, h, w) and returns one value a sample (b,) and anything else worth
    keeping. With a tied pair u = v = x_T, the gradient with respect to x_T is the sum of the two.
    """
    pair = (pair[0].detach(), pair[1].detach())
    unknown = torch.full((len(pair[0]),), math.nan, dtype=pair[0].dtype, device=pair[0].device)
    if memory == "full":
        with torch.enable_grad():
            leaves = (pair[0].requires_grad_(), pair[1].clone().requires_grad_())
            x_0 = solve(table, net, leaves)
            value, aux = average_over_slots(table, x_0, loss)
            u, v = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
        return Gradient(value.detach(), (u, v), (x_0[0].detach(), x_0[1].detach()), aux, unknown)

    visited: list[Tensor] | None = [] if memory == "checkpoint" else None
    with torch.no_grad():
        x_0 = solve(table, net, pair, visited)
    value, aux, cotangent = differentiate_loss(table, x_0, loss)
    recovered, gradient = pull_back(table, net, x_0, cotangent, visited)
    error = largest_difference(recovered, pair) if visited is None else unknown
    return Gradient(value, gradient, x_0, aux, error)


def differentiate_loss(table: Table, x_0: Pair, loss: Loss) -> tuple[Tensor, list[Any], Pair]:
    """Return what `average_over_slots` does, and its gradient by the pair, a slot at a time.

    The graph of one slot's picture is gone before the other's is made.
    """
    values, aux = [], []
    cotangent = [torch.zeros_like(slot) for slot in x_0]
    for slot in table.x_0_slots:
        with torch.enable_grad():
            leaf = x_0[slot].detach().requires_grad_()
            value, other = loss(leaf)
            total = value.sum() / len(table.x_0_slots)
            (cotangent[slot],) = torch.autograd.grad(total, leaf, materialize_grads=True)
        values.append(value.detach())
        aux.append(other)
    return torch.stack(values).mean(0), aux, (cotangent[0], cotangent[1])


def average_over_slots(table: Table, x_0: Pair, loss: Loss) -> tuple[Tensor, list[Any]]:
    """Return the mean loss (b,) over the slots that hold x_0, and each slot's other results."""
    values, aux = zip(*(loss(x_0[slot]) for slot in table.x_0_slots), strict=True)
    return torch.stack(values).mean(0), list(aux)


def largest_difference(first: Pair, second: Pair) -> Tensor:
    """Return max |first - second| over both slots, one value a sample (b,)."""
    return torch.stack(
        [(a - b).abs().flatten(1).amax(1) for a, b in zip(first, second, strict=True)]
    ).amax(0)
