"""Best of n: draw noises, render each, keep the picture that scores best.

The search that any guidance has to beat at equal cost; it needs no gradient. As a baseline of noise
optimisation: ReNO (Eyring et al. 2024, arXiv 2406.04312, section 4).
"""

from collections.abc import Iterator, Mapping
from time import perf_counter

import torch
from torch import Tensor

from doodl_cli.methods.records import lower, make_record, never_judged
from doodl_cli.optimize import Problem, Record
from doodl_cli.optimize.assess import assess
from doodl_cli.optimize.noise import draw_noise, make_generators
from doodl_cli.sampling.solve import Pair


def best_of_n(
    problem: Problem, x_T: Pair, state: Mapping[str, Tensor] | None = None, *, n: int
) -> Iterator[Record]:
    """Yield n records: of x_T, a pair of (b, c, h, w), and of n - 1 noises of each sample's own.

    The best is judged as in `optimize`, on the whole 8-bit picture. A sample's noises depend on its
    seed alone, and the first k are the same for every n. With a `state`: yield those after it.
    """
    noises = make_generators(problem.seeds, "best_of_n")
    crops = make_generators(problem.seeds, "optimize")
    x_T = x_T[0].to(problem.device), x_T[1].to(problem.device)
    first, lowest = 0, never_judged(x_T)
    if state is not None:
        first, lowest = int(state["iteration"]), state["lowest"].to(problem.device)
        for name, generators in (("noises", noises), ("crops", crops)):
            for generator, position in zip(generators, state[name], strict=True):
                generator.set_state(position.clone())  # a view of a row crashes torch
    for iteration in range(first, n):
        began = perf_counter()
        pair = x_T
        if iteration > 0:
            noise = draw_noise(noises, x_T[0].shape[1:]).to(problem.device)
            pair = noise, noise
        found = assess(problem, pair, crops, differentiated=False)
        record_lowest, lowest = lowest, lower(lowest, found.judged)
        after = {
            "iteration": torch.tensor(iteration + 1),
            "x_T": torch.stack(x_T),
            "lowest": lowest,
            "noises": torch.stack([generator.get_state() for generator in noises]),
            "crops": torch.stack([generator.get_state() for generator in crops]),
        }
        yield make_record(iteration, pair, found, record_lowest, began, state=after)
