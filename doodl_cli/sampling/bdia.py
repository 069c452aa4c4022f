"""BDIA (Zhang et al., ECCV 2024, arXiv 2307.10829): bi-directional integration approximation.

x_s is reached from x_q, the state *before* x_t, by undoing gamma times the DDIM step from q to t
(taken backwards with the network's value at t) and doing the one from t to s (eq. 18): exact to
undo, because x_q enters with the factor gamma alone.

At gamma = 1 nothing damps the difference of two neighbouring steps, and where the network is steep
the path swings. A smaller one damps it, gamma times a step. Undone, it grows by 1 / gamma a step,
and so does what was rounded: a path from noise may be damped, that of a picture back to noise not.
"""

from doodl_cli.sampling.schedule import Grid
from doodl_cli.sampling.table import Table, two_step_table

LEAST = 0.5
DAMPED = 1e2  # what a difference grows by, undone in all steps together
UNDAMPED = 2.0
MOST_GROWTH = 1e4


def find_gamma(n_steps: int, growth: float) -> float:
    """Return the gamma with which a difference grows so much in the inversion of all steps."""
    return max(LEAST, growth ** (-1 / n_steps))


def bdia(grid: Grid, gamma: float | None = None) -> Table:
    """Return BDIA's table: one evaluation a step, x_0 in v.

    `gamma` in [0.5, 1]; None: DAMPED. Raises ValueError where it is too small for the steps.
    """
    n_steps = len(grid.t)
    least = find_gamma(n_steps, MOST_GROWTH)
    weight = find_gamma(n_steps, DAMPED) if gamma is None else gamma
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
