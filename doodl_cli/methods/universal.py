"""Universal guidance (Bansal et al. 2023, arXiv 2302.07121, algorithm 1).

At every step, with x_0 = (x_t - sigma eps) / alpha:

    forward      eps <- eps + strength sigma_t d loss(decode(x_0)) / d x_t                  (eq. 6)
    backward     D = the change of x_0 that `n_backward` gradient steps on the loss make    (eq. 7)
                 eps <- eps - (alpha_t / sigma_t) D                                         (eq. 9)
    recurrence   the step to x_s is taken `n_recurrences` times; after each but the last,
                 x_t = (alpha_t / alpha_s) x_s + sqrt(1 - (alpha_t / alpha_s)^2) noise

The backward change is in closed form: with it, the step is the one that would follow from x_0 + D.
Recurrence needs a sampler that steps from x_t alone, DDIM.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from doodl_cli.methods.guided import (
    Predict,
    find_level,
    find_step,
    move,
    plain_and_guided,
    slope_of_loss,
    slope_through_net,
    take_row,
)
from doodl_cli.optimize import Problem, Record
from doodl_cli.optimize.noise import draw_noise
from doodl_cli.sampling.solve import Pair


def universal(
    problem: Problem,
    x_T: Pair,
    state: Mapping[str, Tensor] | None = None,
    *,
    strength: float,
    n_backward: int,
    backward_lr: float,
    n_recurrences: int,
) -> Iterator[Record]:
    """Yield the records of the plain and the guided picture of x_T, a pair of (b, c, h, w).

    Raises ValueError for recurrence with a table that steps from two states.
    """
    if n_recurrences > 1 and any(row.A for row in problem.table.rows):
        raise ValueError(
            f"n_recurrences={n_recurrences}: {problem.table.name} cannot repeat a step"
        )
    predict = partial(
        predict_universally, strength=strength, n_backward=n_backward, backward_lr=backward_lr
    )
    guide = partial(walk_recurrently, predict=predict, n_recurrences=n_recurrences)
    return plain_and_guided(problem, x_T, guide)


def walk_recurrently(
    problem: Problem,
    pair: Pair,
    generators: Sequence[Generator],
    predict: Predict,
    n_recurrences: int,
) -> Pair:
    """Return the pair at x_0, each step taken several times."""
    for k in range(len(problem.table.rows)):
        start = pair
        pair = take_row(problem, k, start, generators, predict)
        for _ in range(n_recurrences - 1):
            x_t = add_noise(problem, k, pair[1], generators)
            pair = take_row(problem, k, (start[0], x_t), generators, predict)
    return pair


def add_noise(problem: Problem, k: int, x_s: Tensor, generators: Sequence[Generator]) -> Tensor:
    """Return x_t at the start of row k, drawn from what x_s (b, c, h, w) at its end allows."""
    grid = problem.table.grid
    i = find_step(problem.table, k)
    ratio = grid.alpha[i] / grid.alpha[i + 1]
    noise = draw_noise(generators, x_s.shape[1:]).to(x_s.device)
    return ratio * x_s + math.sqrt(1 - ratio**2) * noise


def predict_universally(
    problem: Problem,
    k: int,
    pair: Pair,
    generators: Sequence[Generator],
    strength: float,
    n_backward: int,
    backward_lr: float,
) -> Tensor:
    """Return the moved output of the network (b, c, h, w) at row k: one call."""
    level, t = find_level(problem.table, k), problem.table.rows[k].t
    x = pair[1]
    if strength:
        mixture = level.d_x, level.d_n
        out, slope = slope_through_net(problem, problem.net, x, t, mixture, generators)
        change = strength * level.sigma * slope
    else:
        out, change = problem.net(x, t).to(x.dtype), torch.zeros_like(x)
    x_0 = end = level.d_x * x + level.d_n * out
    for _ in range(n_backward):
        end = end - backward_lr * slope_of_loss(problem, end, generators)
    return move(out, level, change - level.alpha / level.sigma * (end - x_0))
