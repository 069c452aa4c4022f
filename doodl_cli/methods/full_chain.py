"""Full-chain guidance: every step is moved by the gradient of the picture that it would end in.

The rest of the chain, from x_t on and without guidance, is differentiated exactly, in the memory
mode of the problem:

    eps <- eps + strength sigma_t d loss(decode(x_0(x_t))) / d x_t

What lies between one-step guidance, whose x_0 is a guess, and DOODL, whose x_T is optimised as a
whole: Wallace et al. 2023 (arXiv 2303.13703). A pair stands for one state held twice, so the slope
by x_t is the sum of the slopes by its two latents, as at x_T.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Generator, Tensor

from doodl_cli.gradient import differentiate
from doodl_cli.methods.guided import find_level, move, plain_and_guided, walk
from doodl_cli.optimize import Problem, Record
from doodl_cli.optimize.assess import make_loss
from doodl_cli.sampling.solve import Pair


def full_chain(
    problem: Problem, x_T: Pair, state: Mapping[str, Tensor] | None = None, *, strength: float
) -> Iterator[Record]:
    """Yield the records of the plain and the guided picture of x_T, a pair of (b, c, h, w).

    A pass over n rows costs n (n + 1) / 2 evaluations, and as many on the way back.
    """
    predict = partial(predict_from_end, strength=strength)
    return plain_and_guided(problem, x_T, partial(walk, predict=predict))


def predict_from_end(
    problem: Problem, k: int, pair: Pair, generators: Sequence[Generator], strength: float
) -> Tensor:
    """Return the moved output of the network (b, c, h, w) at row k."""
    first: list[Tensor] = []

    def net(x: Tensor, t: int) -> Tensor:
        out = problem.net(x, t)
        if not first:  # the rest of the chain begins where this row does
            first.append(out.detach().to(x.dtype))
        return out

    rest = replace(problem.table, rows=problem.table.rows[k:])
    found = differentiate(rest, net, pair, make_loss(problem, generators), problem.memory)
    level = find_level(problem.table, k)
    return move(first[0], level, strength * level.sigma * (found.pair[0] + found.pair[1]))
