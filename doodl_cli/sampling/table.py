"""A sampler is a table of numbers.

The state is a pair of latents (u, v). A row (t, A, B, C, M) does

    n      = A u + B v + C net(v, t)
    (u, v) <- M (n, v)

with scalars t, A, B, C and a 2 x 2 matrix M. Where A != 0 and det M != 0 the row can be undone
exactly, because the network is evaluated at v and v survives: this is what EDICT, BDIA and BELM
have in common, and the only thing the rest of the program knows about them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from doodl_cli.sampling.schedule import Grid

Matrix = tuple[tuple[float, float], tuple[float, float]]

SWAP: Matrix = ((0.0, 1.0), (1.0, 0.0))


@dataclass(frozen=True)
class Row:
    """One row; the network is not evaluated where C = 0."""

    t: int
    A: float
    B: float
    C: float
    M: Matrix = SWAP

    @property
    def invertible(self) -> bool:
        return self.A != 0.0 and determinant(self.M) != 0.0


@dataclass(frozen=True)
class Table:
    """The rows in the order of generation and the slots (0: u, 1: v) that hold x_0 at the end.

    `grid` has the timesteps of the rows, how noisy they are and what the network predicts there.
    """

    name: str
    rows: tuple[Row, ...]
    x_0_slots: tuple[int, ...]
    grid: Grid

    @property
    def invertible(self) -> bool:
        return all(row.invertible for row in self.rows)

    @property
    def n_calls(self) -> int:
        """Network evaluations of one generation."""
        return sum(row.C != 0.0 for row in self.rows)

    @property
    def growth(self) -> float:
        """How much inversion magnifies a rounding error, the network held fixed.

        The largest norm of R_1^-1 ... R_k^-1 over k, where R_i = M_i [[A_i, B_i], [0, 1]] is row
        i's action on (u, v). Infinite for a table that cannot be inverted.
        """
        if not self.invertible:
            return math.inf
        product, largest = ((1.0, 0.0), (0.0, 1.0)), 1.0
        for row in self.rows:
            action = multiply(row.M, ((row.A, row.B), (0.0, 1.0)))
            product = multiply(product, inverse(action))
            largest = max(largest, norm(product))
        return largest


def fold_prediction(grid: Grid, rows: list[tuple[int, Row]]) -> tuple[Row, ...]:
    """Turn rows written for eps into rows for what the network predicts.

    eps = c_x x + c_n net, so B += C c_x and C *= c_n. Each row comes with the grid index its
    network evaluation belongs to.
    """
    folded = []
    for i, row in rows:
        c_x, c_n = eps_coefficients(grid, i)
        folded.append(replace(row, B=row.B + row.C * c_x, C=row.C * c_n))
    return tuple(folded)


def eps_coefficients(grid: Grid, i: int) -> tuple[float, float]:
    """Return (c_x, c_n) of eps = c_x x + c_n net at the step i.

    (0, 1) for epsilon and (sigma, alpha) for v prediction (Salimans and Ho 2022, arXiv 2202.00512).
    """
    return (0.0, 1.0) if grid.prediction == "epsilon" else (grid.sigma[i], grid.alpha[i])


def ddim_coefficients(grid: Grid, i: int) -> tuple[float, float]:
    """Return (a, b) of the DDIM step i: x_s = a x_t + b eps (Song et al. 2021, eq. 12, eta = 0)."""
    a = grid.alpha[i + 1] / grid.alpha[i]
    return a, grid.sigma[i + 1] - a * grid.sigma[i]


def start_at_finite_snr(grid: Grid) -> Grid:
    """Drop a first timestep of pure noise, which no invertible step can leave (alpha = 0)."""
    return grid.without(0) if grid.alpha[0] == 0.0 and len(grid.t) > 1 else grid


def drop_idle_end(grid: Grid) -> Grid:
    """Drop a last step that goes nowhere (t = 0 with `set_alpha_to_one=False`)."""
    idle = len(grid.t) > 1 and grid.alpha[-1] == grid.alpha[-2]
    return grid.without(len(grid.t) - 1) if idle else grid


def two_step_table(
    name: str, grid: Grid, coefficients: Callable[[Grid, int], tuple[float, float, float]]
) -> Table:
    """Return the table of a method that makes x_{i+1} from x_{i-1} (u), x_i (v) and eps(x_i).

    The first row is a DDIM step written on u, so that the pair it starts from can be recovered.
    """
    grid = drop_idle_end(start_at_finite_snr(grid))
    a, b = ddim_coefficients(grid, 0)
    rows = [(0, Row(grid.t[0], a, 0.0, b))]
    rows += [(i, Row(grid.t[i], *coefficients(grid, i))) for i in range(1, len(grid.t))]
    return Table(name, fold_prediction(grid, rows), x_0_slots=(1,), grid=grid)


def determinant(m: Matrix) -> float:
    return m[0][0] * m[1][1] - m[0][1] * m[1][0]


def inverse(m: Matrix) -> Matrix:
    d = determinant(m)
    return (m[1][1] / d, -m[0][1] / d), (-m[1][0] / d, m[0][0] / d)


def transpose(m: Matrix) -> Matrix:
    return (m[0][0], m[1][0]), (m[0][1], m[1][1])


def multiply(m: Matrix, k: Matrix) -> Matrix:
    (a, b), (c, d) = m
    (e, f), (g, h) = k
    return (a * e + b * g, a * f + b * h), (c * e + d * g, c * f + d * h)


def norm(m: Matrix) -> float:
    """Return the largest singular value of m."""
    squares = sum(x * x for row in m for x in row)
    return math.sqrt((squares + math.sqrt(max(squares**2 - 4 * determinant(m) ** 2, 0.0))) / 2)
