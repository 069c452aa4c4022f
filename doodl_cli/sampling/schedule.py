"""The noise schedule: alpha_bar over the training timesteps and the grid a sampler walks.

Notation of DDIM (Song et al. 2021, arXiv 2010.02502) with alpha = sqrt(alpha_bar) and
sigma = sqrt(1 - alpha_bar): x_t = alpha_t x_0 + sigma_t eps. Everything is a Python float, so the
schedule is exact to double precision and a table of it can be printed, hashed and compared.
"""

import math
from dataclasses import dataclass

PREDICTIONS = ("epsilon", "v_prediction")
SPACINGS = ("leading", "trailing", "linspace")


@dataclass(frozen=True)
class Schedule:
    """The forward process of a checkpoint.

    `alpha_bar` holds the cumulative product at each training timestep, `alpha_bar_end` the value
    the last step arrives at (1, or alpha_bar[0] with `set_alpha_to_one=False`).
    """

    alpha_bar: tuple[float, ...]
    alpha_bar_end: float
    prediction: str = "epsilon"
    spacing: str = "leading"
    offset: int = 0


@dataclass(frozen=True)
class Grid:
    """The n steps of one sampling run, noisiest first.

    `t` (n) are the timesteps the network sees; `alpha` and `sigma` (n + 1) belong to them and to
    the end. `prediction` is what the network's output means there.
    """

    t: tuple[int, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    prediction: str

    def without(self, i: int) -> "Grid":
        """Return the grid without the timestep i (0 to n - 1)."""
        t = self.t[:i] + self.t[i + 1 :]
        return Grid(
            t, self.alpha[:i] + self.alpha[i + 1 :], self.sigma[:i] + self.sigma[i + 1 :],
            self.prediction,
        )  # fmt: skip


def scaled_linear(beta_start: float, beta_end: float, n: int = 1000) -> tuple[float, ...]:
    """Return Stable Diffusion's n betas, linear in their roots (Rombach et al. 2022)."""
    start, end = math.sqrt(beta_start), math.sqrt(beta_end)
    return tuple((start + (end - start) * i / max(n - 1, 1)) ** 2 for i in range(n))


def linear(beta_start: float, beta_end: float, n: int = 1000) -> tuple[float, ...]:
    """Return n betas on a line (Ho et al. 2020)."""
    return tuple(beta_start + (beta_end - beta_start) * i / max(n - 1, 1) for i in range(n))


def squared_cosine(n: int = 1000) -> tuple[float, ...]:
    """Return n betas of alpha_bar(t) = cos^2 (Nichol and Dhariwal 2021, eq. 17), at most 0.999."""

    def alpha_bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    return tuple(min(1.0 - alpha_bar((i + 1) / n) / alpha_bar(i / n), 0.999) for i in range(n))


def cumulate(betas: tuple[float, ...], zero_snr: bool = False) -> tuple[float, ...]:
    """Return alpha_bar_t = prod_{s <= t} (1 - beta_s).

    With `zero_snr` the square roots are shifted and scaled so that the last one is exactly zero
    and the first is kept (Lin et al. 2024, arXiv 2305.08891, algorithm 1).
    """
    alpha_bar, product = [], 1.0
    for beta in betas:
        product *= 1.0 - beta
        alpha_bar.append(product)
    if zero_snr:
        root = [math.sqrt(a) for a in alpha_bar]
        first, last = root[0], root[-1]
        alpha_bar = [((r - last) * first / (first - last)) ** 2 for r in root]
    return tuple(alpha_bar)


def make_grid(schedule: Schedule, n_steps: int, spacing: str | None = None) -> Grid:
    """Return the grid of `n_steps` timesteps; each step ends where the next one starts.

    `leading` takes every (T // n)-th timestep from 0 on, plus the checkpoint's offset; `trailing`
    counts down from the last one and so starts at pure noise; `linspace` goes from the last one to
    0, both included (Lin et al. 2024, table 2).

    Raises ValueError if n_steps is not in 1..T or the spacing is unknown.
    """
    n_train = len(schedule.alpha_bar)
    spacing = spacing or schedule.spacing
    if not 1 <= n_steps <= n_train:
        raise ValueError(f"sampler.n_steps={n_steps}: must be between 1 and {n_train}")
    if spacing == "leading":
        stride = n_train // n_steps
        offset = min(schedule.offset, n_train - 1 - stride * (n_steps - 1))
        t = tuple(stride * i + offset for i in reversed(range(n_steps)))
    elif spacing == "trailing":
        t = tuple(round(n_train - i * n_train / n_steps) - 1 for i in range(n_steps))
    elif spacing == "linspace":
        step = (n_train - 1) / max(n_steps - 1, 1)
        t = tuple(round(n_train - 1 - step * i) for i in range(n_steps))
    else:
        raise ValueError(f"sampler.spacing={spacing}: must be one of {', '.join(SPACINGS)}")
    alpha_bar = [schedule.alpha_bar[i] for i in t] + [schedule.alpha_bar_end]
    return Grid(
        t,
        tuple(math.sqrt(a) for a in alpha_bar),
        tuple(math.sqrt(1.0 - a) for a in alpha_bar),
        schedule.prediction,
    )
