"""Samplers as tables, and the one loop that runs them forwards and backwards."""

from doodl_cli.sampling.bdia import bdia
from doodl_cli.sampling.belm import obelm
from doodl_cli.sampling.ddim import ddim
from doodl_cli.sampling.edict import edict
from doodl_cli.sampling.ending import pair_at_x_0
from doodl_cli.sampling.schedule import Grid, Schedule, cumulate, make_grid
from doodl_cli.sampling.solve import Net, invert, pull_back, solve
from doodl_cli.sampling.table import Row, Table

SAMPLERS = {"edict": edict, "bdia": bdia, "obelm": obelm, "ddim": ddim}

__all__ = [
    "SAMPLERS", "Grid", "Net", "Row", "Schedule", "Table", "bdia", "cumulate", "ddim", "edict",
    "invert", "make_grid", "obelm", "pair_at_x_0", "pull_back", "solve",
]  # fmt: skip
