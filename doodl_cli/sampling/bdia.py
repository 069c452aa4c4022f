"""BDIA (Zhang et al., ECCV 2024, arXiv 2307.10829): bi-directional integration approximation.

x_s is reached from x_q, the state *before* x_t, by undoing gamma times the DDIM step from q to t
(taken backwards with the network's value at t) and doing the one from t to s (eq. 18): exact to
undo, because x_q enters with the factor gamma alone.

At gamma = 1 nothing damps the difference of two neighbouring steps, and where the network is steep
the path swings. A smaller one damps it, gamma times a step. Undone, it grows by 1 / gamma a step,
and so does what was rounded: a path from noise may be damped, that of a picture back to noise not.
The fewer and longer the steps, the more they swing: they need a smaller gamma, and can bear it.
"""

from doodl_cli.sampling.schedule import Grid
from doodl_cli.sampling.table import Table, two_step_table

DAMPED = 1e2  # what a difference grows by, undone in all steps together
FEW = 12  # steps, below which it is more
UNDAMPED = 2.0
MOST_GROWTH = 1e4


def find_gamma(n_steps: int, growth: float) -> float:
    """Return the gamma with which a difference grows so much in the inversion of all steps."""
    return growth ** (-1 / n_steps)


def damp(n_steps: int) -> float:
    """Return the gamma of a path that begins at noise: 0.68 for 12 steps, 0.18 for 4."""
    return find_gamma(n_steps, min(DAMPED * max(1.0, FEW / n_steps) ** 2, MOST_GROWTH))


def bdia(grid: Grid, gamma: float | None = None) -> Table:
    """Return BDIA's table: one evaluation a step, x_0 in v.

    `gamma` in (0, 1]; None: `damp`'s. Raises ValueError where it is too small for the steps.
    """
    n_steps = len(grid.t)
    least = find_gamma(n_steps, MOST_GROWTH)
    weight = damp(n_steps) if gamma is None else gamma
    if not least <= weight <= 1.0:
        raise ValueError(
            f"sampler.gamma={gamma}: must be between {least:.4g} and 1, for {n_steps} steps to be "
            "undone without loss"
        )

    def coefficients(grid: Grid, i: int) -> tuple[float, float, float]:
        alpha_q, alpha_t, alpha_s = grid.alpha[i - 1 : i + 2]
        sigma_q, sigma_t, sigma_s = grid.sigma[i - 1 : i + 2]
        B = alpha_s / alpha_t - weight * alpha_q / alpha_t
        C = (sigma_s - sigma_t * alpha_s / alpha_t) - weight * (
            sigma_q - sigma_t * alpha_q / alpha_t
        )
        return weight, B, C

    return two_step_table("bdia", grid, coefficients)
