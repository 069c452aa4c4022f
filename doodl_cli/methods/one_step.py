"""One-step guidance: the baseline of the DOODL paper, classifier guidance on a guess of x_0.

The network's one evaluation at x_t makes a guess x_0 = (x_t - sigma eps) / alpha (Song et al. 2021,
arXiv 2010.02502, eq. 9), which is decoded and scored as if it were the picture:

    eps <- eps + strength sigma_t d loss(decode(x_0)) / d x_t

Wallace et al. 2023 (arXiv 2303.13703, section 5); the same as the forward guidance of Bansal et al.
2023 (arXiv 2302.07121, eq. 6).
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from torch import Generator, Tensor

from doodl_cli.methods.guided import find_level, move, plain_and_guided, slope_through_net, walk
from doodl_cli.optimize import Problem, Record
from doodl_cli.sampling.solve import Pair


def one_step(
    problem: Problem,
    x_T: Pair,
    state: Mapping[str, Tensor] | None = None,
    *,
    strength: float,
    blend: bool,
) -> Iterator[Record]:
    """Yield the records of the plain and the guided picture of x_T, a pair of (b, c, h, w).

    With `blend` what is decoded is sigma x_0 + (1 - sigma) x_t, x_0 from the unconditional
    prediction, as in the release; then `problem.net` must have a `halves`.
    """
    predict = partial(predict_from_x_0, strength=strength, blend=blend)
    return plain_and_guided(problem, x_T, partial(walk, predict=predict))


def predict_from_x_0(
    problem: Problem,
    k: int,
    pair: Pair,
    generators: Sequence[Generator],
    strength: float,
    blend: bool,
) -> Tensor:
    """Return the moved output of the network (b, c, h, w) at row k: one call with a gradient."""
    level, t = find_level(problem.table, k), problem.table.rows[k].t
    if not blend:
        mixture = level.d_x, level.d_n
        out, slope = slope_through_net(problem, problem.net, pair[1], t, mixture, generators)
        return move(out, level, strength * level.sigma * slope)
    guided: list[Tensor] = []

    def unconditional(x: Tensor, t: int) -> Tensor:
        out, negative = problem.net.halves(x, t)  # type: ignore[attr-defined]
        guided.append(out.detach().to(x.dtype))
        return negative

    mixture = level.sigma * level.d_x + 1 - level.sigma, level.sigma * level.d_n
    _, slope = slope_through_net(problem, unconditional, pair[1], t, mixture, generators)
    return move(guided[0], level, strength * level.sigma * slope)
