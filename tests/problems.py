"""Problems with exact answers, shared by the tests."""

import torch
from torch import Tensor

from doodl_cli.guidance import Guidance
from doodl_cli.optimize import Problem
from doodl_cli.sampling import SAMPLERS, make_grid
from doodl_cli.sampling.schedule import Schedule, cumulate, scaled_linear

ALPHA_BAR = cumulate(scaled_linear(0.00085, 0.012))


def make_schedule(prediction="epsilon", spacing="trailing", end=1.0) -> Schedule:
    """Return Stable Diffusion's schedule; `end` 1.0, or None for `set_alpha_to_one=False`."""
    return Schedule(ALPHA_BAR, ALPHA_BAR[0] if end is None else end, prediction, spacing)


def make_smooth_net(seed: int = 0, size: int = 16, dtype=torch.float64):
    """Return a small nonlinear network on latents of `size` numbers a sample."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        torch.randn(size, size, generator=generator, dtype=torch.float64).to(dtype) / size**0.5
        for _ in range(2)
    )

    def net(x: Tensor, t: int) -> Tensor:
        flat = x.to(dtype).flatten(1)
        return (torch.tanh(flat @ first + t / 1000) @ second + 0.3 * flat).view_as(x)

    return net


def gaussian_net(schedule: Schedule, std: float, mean: float | Tensor = 0.0):
    """Return the exact prediction where x_0 ~ N(mean, std^2): affine in x.

    eps = sigma (x - alpha mean) / (alpha^2 std^2 + sigma^2), and v = alpha eps - sigma x_0 with
    x_0 = (x - sigma eps) / alpha.
    """

    def net(x: Tensor, t: int) -> Tensor:
        alpha_bar = schedule.alpha_bar[t]
        alpha, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        eps = sigma * (x - alpha * mean) / (alpha_bar * std**2 + 1 - alpha_bar)
        if schedule.prediction == "epsilon":
            return eps
        return alpha * eps - sigma * (x - sigma * eps) / alpha

    return net


def make_noise(b: int = 3, seed: int = 1) -> Tensor:
    """Return latents (b, 1, 4, 4) in float64."""
    return torch.randn(
        b, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def square_loss(x_0: Tensor):
    """Return a loss whose gradient is everywhere different (b,)."""
    return (x_0.square() + x_0.sin()).flatten(1).sum(1), None


def brightness(images: Tensor, prompts) -> Tensor:
    """Return the mean of each picture (b,)."""
    return images.flatten(1).mean(1)


def decode(x_0: Tensor) -> Tensor:
    """Return grey pictures of latents (b, 1, h, w)."""
    return x_0.float().expand(-1, 3, -1, -1) / 4


def make_problem(seeds, score=brightness, evaluation=None) -> Problem:
    """Return small pictures to be made brighter; latents are (1, 4, 4)."""
    return Problem(
        table=SAMPLERS["bdia"](make_grid(make_schedule(), 6)),
        net=make_smooth_net(),
        decode=decode,
        guidance={"brightness": Guidance(score)},
        evaluation=evaluation or {},
        prompts=[""] * len(seeds),
        seeds=seeds,
    )
