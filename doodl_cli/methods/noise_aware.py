"""Noise-aware guidance: a classifier that was trained on noisy latents (Dhariwal and Nichol
2021, arXiv 2105.05233, section 4 and algorithm 2):

    eps <- eps - strength sigma_t d log p(y | x_t, t) / d x_t

It needs no guess of x_0, no decoder and no gradient of the denoiser, but training for every level
of noise, classes that are known beforehand, and a classifier for each latent space.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from doodl_cli.methods.guided import find_level, move, plain_and_guided, walk
from doodl_cli.optimize import Problem, Record
from doodl_cli.sampling.solve import Pair

Classifier = Callable[[Tensor, int, Sequence[str]], Tensor]


def noise_aware(
    problem: Problem,
    x_T: Pair,
    state: Mapping[str, Tensor] | None = None,
    *,
    strength: float,
    classifier: Classifier,
) -> Iterator[Record]:
    """Yield the records of the plain and the guided picture of x_T, a pair of (b, c, h, w).

    `classifier` takes x_t (b, c, h, w), the timestep t and the prompts and returns
    log p(y | x_t, t) (b,) of the class y that each asks for.
    """
    predict = partial(predict_for_class, strength=strength, classifier=classifier)
    return plain_and_guided(problem, x_T, partial(walk, predict=predict))


def predict_for_class(
    problem: Problem,
    k: int,
    pair: Pair,
    generators: Sequence[Generator],
    strength: float,
    classifier: Classifier,
) -> Tensor:
    """Return the moved output of the network (b, c, h, w) at row k: one call, no gradient of it."""
    level, t = find_level(problem.table, k), problem.table.rows[k].t
    with torch.enable_grad():
        x = pair[1].detach().requires_grad_()
        (slope,) = torch.autograd.grad(classifier(x, t, problem.prompts).sum(), x)
    return move(problem.net(pair[1], t).to(x.dtype), level, -strength * level.sigma * slope)
