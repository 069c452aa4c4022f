"""EDICT (Wallace et al. 2022, arXiv 2211.12446): two coupled DDIM chains, exactly invertible.

A step from t to s, with DDIM's a and b, is (eqs. 12 to 15)

    x'  = a x + b eps(y)        x'' = p x' + (1 - p) y'
    y'  = a y + b eps(x')       y'' = p y' + (1 - p) x''

Every update uses a value that survives it, so each line can be solved for what it replaced. Odd
steps (counting from 0) update y first, as the authors' code does; the mixing keeps its order.
"""

from doodl_cli.sampling.schedule import Grid
from doodl_cli.sampling.table import (
    SWAP,
    Matrix,
    Row,
    Table,
    ddim_coefficients,
    fold_prediction,
    multiply,
    start_at_finite_snr,
)


def edict(grid: Grid, p: float = 0.93) -> Table:
    """Return EDICT's table: two evaluations a step, x_0 in both slots (x in u, y in v).

    `p` in [0.5, 1] is the mixing weight; 0.93 in the paper.
    """
    if not 0.5 <= p <= 1.0:
        raise ValueError(f"sampler.p={p}: must be between 0.5 and 1")
    q = 1.0 - p
    mix: Matrix = ((p, q), (q * p, q * q + p))  # (x', y') -> (x'', y'')
    grid = start_at_finite_snr(grid)
    rows = []
    n_steps = len(grid.t)
    for i in range(n_steps):
        a, b = ddim_coefficients(grid, i)
        x_first = i % 2 == 0
        x_first_afterwards = not x_first or i == n_steps - 1
        # The second row leaves (y', x') if x came first, else (x', y').
        M = multiply(mix, SWAP) if x_first else mix
        if not x_first_afterwards:
            M = multiply(SWAP, M)
        rows += [(i, Row(grid.t[i], a, 0.0, b)), (i, Row(grid.t[i], a, 0.0, b, M))]
    return Table("edict", fold_prediction(grid, rows), x_0_slots=(0, 1), grid=grid)
