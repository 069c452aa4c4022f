"""O-BELM (Wang et al., NeurIPS 2024, arXiv 2410.07273).

In x / alpha and the step h of sigma / alpha, DDIM's equation is dx = eps d(sigma / alpha). O-BELM,
the optimal bi-directional explicit linear multi-step method, is the two-step formula with one
evaluation whose local error is smallest: of second order, without a parameter.
"""

from doodl_cli.sampling.schedule import Grid
from doodl_cli.sampling.table import Table, two_step_table


def obelm(grid: Grid) -> Table:
    """Return O-BELM's table: one evaluation a step, x_0 in v."""

    def coefficients(grid: Grid, i: int) -> tuple[float, float, float]:
        alpha_q, alpha_t, alpha_s = grid.alpha[i - 1 : i + 2]
        noise_q, noise_t, noise_s = (grid.sigma[j] / grid.alpha[j] for j in (i - 1, i, i + 1))
        h, H = noise_t - noise_s, noise_q - noise_t
        A = (h / H) ** 2 * alpha_s / alpha_q
        B = (H**2 - h**2) / H**2 * alpha_s / alpha_t
        C = -h * (h + H) / H * alpha_s
        return A, B, C

    return two_step_table("obelm", grid, coefficients)
