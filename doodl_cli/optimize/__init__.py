"""Optimise x_T: the loop, the update rules, the constraints on the latent."""

from doodl_cli.optimize.assess import MicroBatch, Problem, render
from doodl_cli.optimize.loop import Record, optimize
from doodl_cli.optimize.noise import initial_noise
from doodl_cli.optimize.rules import Settings

__all__ = ["MicroBatch", "Problem", "Record", "Settings", "initial_noise", "optimize", "render"]
