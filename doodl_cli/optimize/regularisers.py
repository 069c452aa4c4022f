"""What keeps x_T likely under the prior N(0, 1), as terms of the loss.

The network has only seen noise of the prior; a score can be raised by leaving it. Functions of
latents (..., c, h, w), one value each, in the state's own precision: half precision would overflow.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def chi_norm(x_T: Tensor) -> Tensor:
    """Return |x_T|^2 / 2 - (d - 1) log |x_T|: -log p(|x_T|) under the prior, up to a constant.

    The norm of d standard normal numbers follows a chi distribution, highest at sqrt(d - 1).
    Its gradient is along x_T, so it does nothing where x_T is brought back to its first norm.
    Source: ReNO (Eyring et al. 2024, arXiv 2406.04312), with the weight 0.01.
    """
    flat = x_T.flatten(-3)
    square = flat.square().sum(-1)
    return square / 2 - (flat.shape[-1] - 1) * square.log() / 2


def kl_prior(x_T: Tensor) -> Tensor:
    """Return KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1 - log s^2) / 2.

    m and s^2 are the mean and the variance of x_T's elements.
    """
    flat = x_T.flatten(-3)
    mean, variance = flat.mean(-1), flat.var(-1, correction=0)
    return (mean.square() + variance - 1 - variance.log()) / 2


REGULARISERS: dict[str, Callable[[Tensor], Tensor]] = {"chi_norm": chi_norm, "kl_prior": kl_prior}


def regularise(pair: Tensor, weights: Mapping[str, float]) -> tuple[dict[str, Tensor], Tensor]:
    """Return each named term's value (b,), not weighted, and the gradient of their weighted sum.

    `pair` and the gradient are (2, b, c, h, w); a value is the mean over both latents.
    """
    with torch.enable_grad():
        pair = pair.detach().requires_grad_()
        values = {name: REGULARISERS[name](pair).mean(0) for name in weights}
        terms = [weight * values[name].sum() for name, weight in weights.items()]
        (gradient,) = torch.autograd.grad(torch.stack(terms).sum(), pair)
    return {name: value.detach() for name, value in values.items()}, gradient
