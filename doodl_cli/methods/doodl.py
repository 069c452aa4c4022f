"""DOODL (Wallace et al. 2023, arXiv 2303.13703), where asked from the best of several noises.

How far a gradient takes a picture depends on the noise it begins with, so part of a budget may go
to choosing that: random search over noises (Ma et al. 2025, arXiv 2501.09732, section 3.1), then
the optimisation. The paper begins with the sample's own noise.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from doodl_cli.methods.best_of_n import best_of_n
from doodl_cli.optimize import Problem, Record, Settings, optimize
from doodl_cli.sampling.solve import Pair


def doodl(
    problem: Problem,
    x_T: Pair,
    state: Mapping[str, Tensor] | None = None,
    *,
    settings: Settings,
    n_candidates: int,
) -> Iterator[Record]:
    """Yield the records of `optimize` from x_T, a pair of (b, c, h, w).

    With `n_candidates` k above 1 those of `best_of_n` come first, 0 to k - 1, and the optimisation
    begins with the noises of the best ones, at iteration k. With a `state`: yield those after it.
    """
    if n_candidates == 1:
        yield from optimize(problem, settings, x_T, state)
        return
    if state is None or "noises" in state:  # of the search, which may have come to its end
        for record in best_of_n(problem, x_T, state, n=n_candidates):
            state = record.state
            yield record
        assert state is not None
        u, v = state["best_x_T"]
        x_T, state = (u, v), None
    yield from optimize(problem, settings, x_T, state, n_candidates)
