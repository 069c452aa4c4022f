"""How far a budget of network calls takes a method: the one setting that spends it.

A call is one guided evaluation of the network for one sample; with its gradient it costs
`vjp_cost` calls. What a method does once n evaluations render a picture:

    none        n
    best_of_n   N n
    doodl       n_iters (n with gradient, and n more where the memory mode evaluates twice) + n,
                and n more for each candidate, where there are several
    one_step    n with gradient, and n for the plain picture that it is compared with
    universal   the same, `n_recurrences` times over; without the gradients for strength 0
    full_chain  n (n + 1) / 2 with gradient, and n for the plain picture
    noise_aware 2 n: its gradient is not the network's

Scorers and decoders are not counted, as nothing of theirs is in the budget; seconds tell.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from doodl_cli.config import Config, Universal
from doodl_cli.errors import UserError

# The setting that spends a method's budget; `none` has nothing to spend it on.
KNOBS = {
    "best_of_n": "method.n",
    "doodl": "optimizer.n_iters",
    "one_step": "sampler.n_steps",
    "universal": "sampler.n_steps",
    "full_chain": "sampler.n_steps",
    "noise_aware": "sampler.n_steps",
}
MOST = {"method.n": 100_000, "optimizer.n_iters": 10_000, "sampler.n_steps": 1000}


@dataclass(frozen=True)
class Price:
    """What a picture costs: `n_calls` of a sampler by its steps; a call with its gradient."""

    n_calls: Callable[[int], int]
    vjp_cost: float

    def of(self, config: Config, knob: int) -> float:
        """Return the calls that a method makes a sample with its knob at a value."""
        name = config.method.name
        steps = knob if KNOBS.get(name) == "sampler.n_steps" else config.sampler.n_steps
        n = self.n_calls(steps)
        again = 0 if config.memory.name == "full" else n  # the way back evaluates once more
        if name == "best_of_n":
            return knob * n
        if name == "doodl":
            return config.n_searched * n + knob * (again + self.vjp_cost * n) + n
        if name == "full_chain":
            rows = n * (n + 1) / 2
            return n + rows * (self.vjp_cost + (again > 0))
        if name == "noise_aware":
            return 2 * n
        if name == "one_step":
            return n + self.vjp_cost * n
        if isinstance(config.method, Universal):
            cost = self.vjp_cost if config.method.strength else 1
            return n + config.method.n_recurrences * cost * n
        return n


def spend(config: Config, budget: float, price: Price) -> int | None:
    """Return the largest value of a method's knob that a budget allows, None for no knob.

    Raises ValueError where it does not allow one.
    """
    knob = KNOBS.get(config.method.name)
    if knob is None:
        return None
    if price.of(config, 1) > budget:
        raise ValueError(
            f"method={config.method.name} needs {math.ceil(price.of(config, 1))} calls at least"
        )

    def allows(value: int) -> bool:
        try:
            return price.of(config, value) <= budget
        except UserError:  # more steps than the schedule has or the sampler can undo
            return False

    low, high = 1, MOST[knob]  # by bisection: the cost rises with the knob
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if allows(middle) else (low, middle - 1)
    return low


def count(network_calls: float, vjps: float, vjp_cost: float) -> float:
    """Return what counted evaluations cost, in calls; `vjps` of them carried a gradient."""
    return network_calls + (vjp_cost - 1) * vjps
