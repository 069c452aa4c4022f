"""The method and what it is compared with: the same models, scores and counters.

A method takes a problem, the pair at x_T (b, c, h, w) and, where its records have one, the state to
go on from, and yields records. The first, iteration 0, is always the plain picture of x_T.
"""

from collections.abc import Callable, Iterator

from doodl_cli.methods.best_of_n import best_of_n
from doodl_cli.methods.doodl import doodl
from doodl_cli.methods.full_chain import full_chain
from doodl_cli.methods.noise_aware import noise_aware
from doodl_cli.methods.none import none
from doodl_cli.methods.one_step import one_step
from doodl_cli.methods.universal import universal
from doodl_cli.optimize import Record

METHODS: dict[str, Callable[..., Iterator[Record]]] = {
    "doodl": doodl,
    "none": none,
    "best_of_n": best_of_n,
    "one_step": one_step,
    "full_chain": full_chain,
    "universal": universal,
    "noise_aware": noise_aware,
}

__all__ = [
    "METHODS", "best_of_n", "doodl", "full_chain", "noise_aware", "none", "one_step", "universal",
]  # fmt: skip
