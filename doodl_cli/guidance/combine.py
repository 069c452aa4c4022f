"""Several losses on one picture: their weighted sum, balanced if wanted, and each one's share.

Scorers differ in scale by orders of magnitude, so weights say little about who moves the picture.
The gradient of each term at the picture, which the way back passes anyhow, does: its norm gives the
term's share, and divided by it every term pulls as hard as its weight says. The chain behind the
picture is differentiated once, for all terms together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor

from doodl_cli.guidance.guidance import Guidance


@dataclass(frozen=True)
class Terms:
    """What each of k guidances contributes for each of b samples, all (k, b).

    `losses`: not weighted. `scales`: what balancing multiplies the weights with. `shares`: of the
    norms of the weighted gradients at the picture, 1 in sum; NaN where nothing was differentiated.
    """

    losses: Tensor
    scales: Tensor
    shares: Tensor


def combine(
    guidance: Mapping[str, Guidance],
    images: Tensor,
    prompts: Sequence[str],
    generators: Sequence[Generator],
    balance: bool = False,
) -> tuple[Tensor, Terms]:
    """Return the weighted sum of the guidances' losses (b,) on pictures (b, 3, h, w).

    With `balance` its gradient is the one of balanced terms: each term's is scaled, sample by
    sample, to the mean norm over the terms, and then weighted.
    """
    terms = list(guidance.values())
    if len(terms) == 1 or not (torch.is_grad_enabled() and images.requires_grad):
        losses = [term.loss(images, prompts, generators) for term in terms]
        total = torch.stack([g.weight * x for g, x in zip(terms, losses, strict=True)]).sum(0)
        found = torch.stack(losses).detach()
        shares = torch.full_like(found, 1.0 if len(terms) == 1 else torch.nan)
        return total, Terms(found, torch.ones_like(found), shares)

    losses, gradients = [], []
    for term in terms:
        loss = term.loss(images, prompts, generators)
        (gradient,) = torch.autograd.grad(loss.sum(), images, materialize_grads=True)
        losses.append(loss.detach())
        gradients.append(gradient)
    found, norms = torch.stack(losses), torch.stack([g.flatten(1).norm(dim=1) for g in gradients])
    weights = torch.tensor([term.weight for term in terms]).to(found)[:, None]
    scales = torch.ones_like(norms)
    if balance:
        scales = torch.where(norms > 0, norms.mean(0) / norms, 1.0)
    pulls = weights * scales
    gradient = sum(pull.view(-1, 1, 1, 1) * g for pull, g in zip(pulls, gradients, strict=True))
    shares = pulls.abs() * norms
    shares = shares / shares.sum(0)
    return attach(images, gradient, (weights * found).sum(0)), Terms(found, scales, shares)


def attach(images: Tensor, gradient: Tensor, value: Tensor) -> Tensor:
    """Return values (b,) whose gradient at the pictures is the given one."""
    linear = (images * gradient).flatten(1).sum(1)
    return value + (linear - linear.detach())


def join_terms(parts: Sequence[Terms]) -> Terms:
    """Put the samples of several parts together."""
    return Terms(*(torch.cat([getattr(part, x.name) for part in parts], 1) for x in fields(Terms)))
