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
    seed alone, and the first k are the same for every n. With a `state`: yield those after it. A
    record's state has the noises of the best pictures so far, `best_x_T` (2, b, c, h, w).
    """
    noises = make_generators(problem.seeds, "best_of_n")
    crops = make_generators(problem.seeds, "optimize")
    x_T = x_T[0].to(problem.device), x_T[1].to(problem.device)
    first, lowest, best_x_T = 0, never_judged(x_T), torch.stack(x_T)
    if state is not None:
        first = int(state["iteration"])
        lowest, best_x_T = (state[name].to(problem.device) for name in ("lowest", "best_x_T"))
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
        better = (found.judged < record_lowest).view(-1, 1, 1, 1)
        best_x_T = torch.where(better, torch.stack(pair), best_x_T)
        after = {
            "iteration": torch.tensor(iteration + 1),
            "x_T": torch.stack(x_T),
            "lowest": lowest,
            "best_x_T": best_x_T,
            "noises": torch.stack([generator.get_state() for generator in noises]),
            "crops": torch.stack([generator.get_state() for generator in crops]),
        }
        yield make_record(iteration, pair, found, record_lowest, began, state=after)
