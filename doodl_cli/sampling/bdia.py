"""BDIA (Zhang et al., ECCV 2024, arXiv 2307.10829): bi-directional integration approximation.

x_s is reached from x_q, the state *before* x_t, by undoing gamma times the DDIM step from q to t
(taken backwards with the network's value at t) and doing the one from t to s (eq. 18): exact to
undo, because x_q enters with the factor gamma alone.
"""

from doodl_cli.sampling.schedule import Grid
from doodl_cli.sampling.table import Table, two_step_table


def bdia(grid: Grid, gamma: float = 0.96) -> Table:
    """Return BDIA's table: one evaluation a step, x_0 in v.

    `gamma` in [0.92, 1]: below, rounding errors grow by 1 / gamma a step and spoil the inversion.
    """
    if not 0.92 <= gamma <= 1.0:
        raise ValueError(f"sampler.gamma={gamma}: must be between 0.92 and 1")

    def coefficients(grid: Grid, i: int) -> tuple[float, float, float]:
        alpha_q, alpha_t, alpha_s = grid.alpha[i - 1 : i + 2]
        sigma_q, sigma_t, sigma_s = grid.sigma[i - 1 : i + 2]
        B = alpha_s / alpha_t - gamma * alpha_q / alpha_t
        C = (sigma_s - sigma_t * alpha_s / alpha_t) - gamma * (
            sigma_q - sigma_t * alpha_q / alpha_t
        )
        return gamma, B, C

    return two_step_table("bdia", grid, coefficients)
