"""Update rules for x_T, over torch.optim, and what keeps x_T likely noise.

doodl      SGD with momentum, not damped, on an element-clipped gradient: every element moves by
           about `clip` a step, whatever the scale of the loss (the released code of DOODL)
nesterov   the same with Nesterov's look-ahead (ReNO's choice, Eyring et al. 2024)
adam       Kingma and Ba 2015, with `momentum` as its first decay
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from doodl_cli.optimize.noise import draw_noise

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "doodl": lambda x, s: torch.optim.SGD([x], s.lr, momentum=s.momentum),
    "nesterov": lambda x, s: torch.optim.SGD(
        [x], s.lr, momentum=s.momentum, nesterov=s.momentum > 0
    ),
    "adam": lambda x, s: torch.optim.Adam([x], s.lr, betas=(s.momentum, 0.999)),
}


@dataclass(frozen=True)
class Settings:
    """How x_T is optimised; `clip` bounds each element of the gradient (inf: not at all).

    `balance`: the guidances' gradients get one norm before they are weighted. `regularisers`: the
    weights of terms on x_T, by name. `stop_on`: the held-out score that stops a sample once it has
    been below its highest for `patience` iterations.
    """

    n_iters: int = 16
    lr: float = 1.0
    rule: str = "doodl"
    momentum: float = 0.9
    clip: float = 1e-2
    perturb: float = 1e-4
    renormalize: bool = True
    tied: bool = True
    balance: bool = False
    schedule: str = "constant"
    warmup: int = 0
    regularisers: Mapping[str, float] = field(default_factory=dict)
    stop_on: str | None = None
    patience: int = 5


class Updater:
    """x_T as a pair (2, b, c, h, w) and the rule that moves it."""

    def __init__(self, x_T: Tensor, settings: Settings, generators: Sequence[Generator]) -> None:
        if settings.tied:
            x_T = x_T.mean(0, keepdim=True).expand_as(x_T)
        self.x_T = x_T.clone()
        self.settings = settings
        self.generators = generators
        self.norm = norms(self.x_T)
        self.optimizer = OPTIMIZERS[settings.rule](self.x_T, settings)
        self.iteration = 0

    @torch.no_grad()
    def step(self, gradient: Tensor, active: Tensor) -> None:
        """Move the active samples (b,) against the gradient (2, b, c, h, w)."""
        settings, before = self.settings, self.x_T.clone()
        if settings.tied:
            gradient = gradient.mean(0, keepdim=True).expand_as(gradient)
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0).clamp(-settings.clip, settings.clip)
        self.x_T.grad = gradient.contiguous()
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * learning_rate_factor(self.iteration, settings)
        self.optimizer.step()
        if settings.perturb:
            self.x_T += settings.perturb * self.draw()
        if settings.renormalize:
            self.x_T *= self.norm / norms(self.x_T)
        self.x_T[:, ~active] = before[:, ~active]
        self.iteration += 1

    def draw(self) -> Tensor:
        """Return noise shaped like x_T, the same for both latents of a tied pair."""
        n, _, *shape = self.x_T.shape
        n_draws = 1 if self.settings.tied else n
        noise = draw_noise(self.generators, (n_draws, *shape)).transpose(0, 1)
        return noise.expand_as(self.x_T).to(self.x_T.device)


def norms(x: Tensor) -> Tensor:
    """Return the norm of each latent of each sample, (2, b, 1, 1, 1)."""
    return x.flatten(2).norm(dim=2)[..., None, None, None]


def learning_rate_factor(iteration: int, settings: Settings) -> float:
    """Return the factor of lr: a linear warm-up, then constant or half a cosine down to 0."""
    if iteration < settings.warmup:
        return (iteration + 1) / (settings.warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    progress = (iteration - settings.warmup) / max(settings.n_iters - settings.warmup, 1)
    return (1 + math.cos(math.pi * progress)) / 2
