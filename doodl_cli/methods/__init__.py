"""What `doodl` is compared with: the same models, scores and counters, other ways to guide.

A method takes a problem, the pair at x_T (b, c, h, w) and, where its records have one, the state to
go on from, and yields records. The first, iteration 0, is always the plain picture of x_T.
"""

from collections.abc import Callable, Iterator

from doodl_cli.methods.best_of_n import best_of_n
from doodl_cli.methods.none import none
from doodl_cli.optimize import Record

METHODS: dict[str, Callable[..., Iterator[Record]]] = {"none": none, "best_of_n": best_of_n}

__all__ = ["METHODS", "best_of_n", "none"]
