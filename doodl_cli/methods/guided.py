"""Guidance on the way: each prediction of the network is moved before the sampler takes its step.

What is moved is eps, the direction of the noise; a sampler's table does the rest, whichever it is.
With alpha and sigma of the timestep t, a loss L of pictures and its slope g (b, c, h, w),

    eps <- eps + strength sigma_t g

is classifier guidance (Dhariwal and Nichol 2021, arXiv 2105.05233, algorithm 2), which methods
differ from each other by: where L looks, and what g is the slope by. Nothing is moved at pure noise
(alpha = 0), where x_t says nothing about the picture.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Generator, Tensor

from doodl_cli.methods.records import lower, make_record, never_judged
from doodl_cli.optimize import Problem, Record
from doodl_cli.optimize.assess import Assessment, assess_x_0, join, make_loss
from doodl_cli.optimize.noise import make_generators
from doodl_cli.sampling import solve
from doodl_cli.sampling.solve import Net, Pair, evaluate, vjp
from doodl_cli.sampling.table import Table, eps_coefficients

Predict = Callable[[Problem, int, Pair, Sequence[Generator]], Tensor]
Walk = Callable[[Problem, Pair, Sequence[Generator]], Pair]


@dataclass(frozen=True)
class Level:
    """How noisy the row of a table is and what the network says there.

    eps = c_x x + c_n net, and so x_0 = (x - sigma eps) / alpha = d_x x + d_n net.
    """

    alpha: float
    sigma: float
    c_x: float
    c_n: float
    d_x: float
    d_n: float


def find_step(table: Table, k: int) -> int:
    """Return the step that row k belongs to, as the table's grid counts them."""
    return table.grid.t.index(table.rows[k].t)


def find_level(table: Table, k: int) -> Level:
    """Return the level of row k; its alpha must not be 0."""
    grid, i = table.grid, find_step(table, k)
    alpha, sigma = grid.alpha[i], grid.sigma[i]
    c_x, c_n = eps_coefficients(grid, i)
    return Level(alpha, sigma, c_x, c_n, (1 - sigma * c_x) / alpha, -sigma * c_n / alpha)


def move(out: Tensor, level: Level, change: Tensor) -> Tensor:
    """Return the network's output (b, c, h, w) with eps moved by `change`."""
    return out + change / level.c_n


def walk(problem: Problem, pair: Pair, generators: Sequence[Generator], predict: Predict) -> Pair:
    """Return the pair at x_0 (b, c, h, w) where `predict` says what the network does."""
    for k in range(len(problem.table.rows)):
        pair = take_row(problem, k, pair, generators, predict)
    return pair


@torch.no_grad()
def take_row(
    problem: Problem, k: int, pair: Pair, generators: Sequence[Generator], predict: Predict
) -> Pair:
    """Return the pair after row k."""

    def net(x: Tensor, t: int) -> Tensor:
        if problem.table.grid.alpha[find_step(problem.table, k)] == 0.0:
            return problem.net(x, t)
        return predict(problem, k, pair, generators)

    return solve(replace(problem.table, rows=problem.table.rows[k : k + 1]), net, pair)


def plain_and_guided(problem: Problem, x_T: Pair, guide: Walk) -> Iterator[Record]:
    """Yield two records: of the plain picture of x_T, a pair of (b, c, h, w), and the guided one.

    The guided picture does not come from x_T alone, so the records carry x_0.
    """
    x_T = x_T[0].to(problem.device), x_T[1].to(problem.device)
    crops = make_generators(problem.seeds, "optimize")
    lowest = never_judged(x_T)
    for iteration, way in enumerate((go_plainly, guide)):
        began = perf_counter()
        found, x_0 = follow(problem, x_T, way, crops)
        healthy = (found.loss.isfinite() & found.judged.isfinite()).tolist()
        yield make_record(iteration, x_T, found, lowest, began, x_0, active=healthy)
        lowest = lower(lowest, found.judged)


@torch.no_grad()
def go_plainly(problem: Problem, pair: Pair, generators: Sequence[Generator]) -> Pair:
    return solve(problem.table, problem.net, pair)


def follow(
    problem: Problem, x_T: Pair, way: Walk, crops: Sequence[Generator]
) -> tuple[Assessment, Pair]:
    """Walk from x_T, part by part, and return what is found there and the pair at x_0."""
    generators = make_generators(problem.seeds, "guide")

    def follow_part(k: slice, part: Problem) -> tuple[Assessment, Pair]:
        x_0 = way(part, (x_T[0][k], x_T[1][k]), generators[k])
        return assess_x_0(part, x_0, crops[k]), x_0

    found, ends = zip(*problem.compute(follow_part, generators, crops), strict=True)
    u, v = (torch.cat(latents) for latents in zip(*ends, strict=True))
    return join(found), (u, v)


def slope_through_net(
    problem: Problem,
    net: Net,
    x: Tensor,
    t: int,
    mixture: tuple[float, float],
    generators: Sequence[Generator],
) -> tuple[Tensor, Tensor]:
    """Return net(x, t) and d loss(decode(k_x x + k_n net(x, t))) / d x, both (b, c, h, w).

    One call of the network with one vector-Jacobian product; `mixture` is (k_x, k_n).
    """
    k_x, k_n = mixture
    x, out = evaluate(net, x, t)
    slope = slope_of_loss(problem, k_x * x + k_n * out, generators)
    return out.detach(), k_x * slope + vjp(out, x, k_n * slope)


def slope_of_loss(problem: Problem, x_0: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Return d loss / d x_0 (b, c, h, w): of the weighted guidances, at these latents."""
    with torch.enable_grad():
        x_0 = x_0.detach().requires_grad_()
        value, _ = make_loss(problem, generators)(x_0)
        (slope,) = torch.autograd.grad(value.sum(), x_0)
    return slope
