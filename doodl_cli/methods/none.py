"""Plain sampling: the picture that every other method is compared with."""

from collections.abc import Iterator, Mapping
from time import perf_counter

from torch import Tensor

from doodl_cli.methods.records import make_record, never_judged
from doodl_cli.optimize import Problem, Record
from doodl_cli.optimize.assess import assess
from doodl_cli.optimize.noise import make_generators
from doodl_cli.sampling.solve import Pair


def none(
    problem: Problem, x_T: Pair, state: Mapping[str, Tensor] | None = None
) -> Iterator[Record]:
    """Yield the record of the picture of x_T, a pair of (b, c, h, w), after a state nothing."""
    if state is not None:
        return
    began = perf_counter()
    x_T = x_T[0].to(problem.device), x_T[1].to(problem.device)
    generators = make_generators(problem.seeds, "optimize")
    found = assess(problem, x_T, generators, differentiated=False)
    yield make_record(0, x_T, found, never_judged(x_T), began)
