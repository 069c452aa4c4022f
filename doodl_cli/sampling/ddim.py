"""DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 with eta = 0): x_s = a x_t + b eps(x_t).

Written on v alone (A = 0), so it cannot be inverted and needs stored states.
"""

from doodl_cli.sampling.schedule import Grid
from doodl_cli.sampling.table import Row, Table, ddim_coefficients, fold_prediction


def ddim(grid: Grid) -> Table:
    """Return DDIM's table: one evaluation a step."""
    zero_snr = grid.alpha[0] == 0.0
    if zero_snr and grid.prediction == "epsilon":
        raise ValueError("an epsilon prediction says nothing at zero signal-to-noise ratio")
    rows = []
    for i in range(zero_snr, len(grid.t)):
        a, b = ddim_coefficients(grid, i)
        rows.append((i, Row(grid.t[i], 0.0, a, b)))
    table = fold_prediction(grid, rows)
    if zero_snr:
        # The same step for v prediction, written without the division by alpha_t = 0.
        table = (Row(grid.t[0], 0.0, grid.sigma[1], -grid.alpha[1]), *table)
    return Table("ddim", table, x_0_slots=(1,), grid=grid)
