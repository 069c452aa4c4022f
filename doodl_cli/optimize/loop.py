"""The optimisation of x_T by the exact gradient of the finished picture's score (DOODL).

Wallace, Gokul, Ermon, Naik 2023, arXiv 2303.13703, algorithm 1. The best iterate is judged on the
whole picture as it is saved (8 bit), so that neither a lucky crop nor a colour outside the screen's
range can win.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from doodl_cli.gradient import average_over_slots, differentiate
from doodl_cli.guidance import Guidance, Score, Terms, combine
from doodl_cli.optimize.noise import make_generators
from doodl_cli.optimize.rules import Settings, Updater
from doodl_cli.sampling import Net, Table, solve


@dataclass(frozen=True)
class Problem:
    """What is optimised: a sampler around a network, and scores of its pictures; b samples."""

    table: Table
    net: Net
    decode: Callable[[Tensor], Tensor]
    guidance: Mapping[str, Guidance]
    evaluation: Mapping[str, Score]
    prompts: Sequence[str]
    seeds: Sequence[int]
    memory: str = "reversible"
    device: torch.device = torch.device("cpu")


@dataclass(frozen=True)
class Record:
    """The state after `iteration` updates; lists hold one value a sample.

    `loss`: what is minimised, on crops. `guidance` and `evaluate`: raw scores of the whole 8-bit
    picture. `best`: this iterate is the sample's best so far. `active`: False once a sample's loss
    has turned NaN; it stays as it was at its best. `images` (b, 3, h, w): uint8. `pair`: x_T.
    `grad_norm` and `round_trip_error` are NaN where nothing was differentiated or inverted.
    `terms`: each guidance's loss, not weighted; `shares`: of their gradients at the picture.
    """

    iteration: int
    loss: list[float]
    guidance: dict[str, list[float]]
    evaluate: dict[str, list[float]]
    grad_norm: list[float]
    latent_norm: list[float]
    seconds: float
    best: list[bool]
    active: list[bool]
    images: Tensor
    pair: tuple[Tensor, Tensor]
    round_trip_error: list[float]
    terms: dict[str, list[float]] = field(default_factory=dict)
    shares: dict[str, list[float]] = field(default_factory=dict)


def optimize(problem: Problem, settings: Settings, x_T: tuple[Tensor, Tensor]) -> Iterator[Record]:
    """Yield n_iters + 1 records, the start first. `x_T` is a pair of (b, c, h, w), float64."""
    generators = make_generators(problem.seeds, "optimize")
    updater = Updater(torch.stack(x_T).to(problem.device), settings, generators)
    n_samples = len(problem.seeds)
    active = torch.ones(n_samples, dtype=torch.bool, device=problem.device)
    lowest = torch.full((n_samples,), torch.inf, device=problem.device)
    best_x_T = updater.x_T.clone()
    scales: Tensor | None = None

    def loss(x_0: Tensor) -> tuple[Tensor, Terms]:
        images = problem.decode(x_0)
        return combine(problem.guidance, images, problem.prompts, generators, settings.balance)

    for iteration in range(settings.n_iters + 1):
        began = time.perf_counter()
        pair = (updater.x_T[0].clone(), updater.x_T[1].clone())
        unknown = torch.full((n_samples,), torch.nan, device=problem.device)
        gradient, round_trip_error = None, unknown
        if iteration < settings.n_iters:
            result = differentiate(problem.table, problem.net, pair, loss, problem.memory)
            value, x_0, gradient = result.loss, result.x_0, torch.stack(result.pair)
            round_trip_error, slots = result.round_trip_error, result.aux
        else:
            with torch.no_grad():
                x_0 = solve(problem.table, problem.net, pair)
                value, slots = average_over_slots(problem.table, x_0, loss)
        terms = torch.stack([slot.losses for slot in slots]).mean(0)
        shares = torch.stack([slot.shares for slot in slots]).mean(0)
        if settings.balance:  # by the scales of the start: all iterates are judged by one measure
            scales = torch.stack([x.scales for x in slots]).mean(0) if scales is None else scales
            value = weigh(problem, terms, scales)
        images = finish(problem, x_0)
        scores, judged = judge(problem, images, scales)
        healthy, grad_norm = value.isfinite() & judged.isfinite(), unknown
        if gradient is not None:
            grad_norm = gradient.mean(0).flatten(1).norm(dim=1)
            healthy &= grad_norm.isfinite()
        active = active & healthy
        improved = active & (judged < lowest)
        lowest = torch.where(improved, judged, lowest)
        best_x_T[:, improved] = updater.x_T[:, improved]
        updater.x_T[:, ~active] = best_x_T[:, ~active]
        yield Record(
            iteration=iteration,
            loss=value.tolist(),
            guidance=scores,
            evaluate=measure(problem.evaluation, problem, images),
            grad_norm=grad_norm.tolist(),
            latent_norm=pair[0].flatten(1).norm(dim=1).tolist(),
            seconds=time.perf_counter() - began,
            best=improved.tolist(),
            active=active.tolist(),
            images=images.cpu(),
            pair=(pair[0].cpu(), pair[1].cpu()),
            round_trip_error=round_trip_error.tolist(),
            terms=dict(zip(problem.guidance, terms.tolist(), strict=True)),
            shares=dict(zip(problem.guidance, shares.tolist(), strict=True)),
        )
        if gradient is None or not active.any():
            return
        updater.step(gradient, active)


def weigh(problem: Problem, losses: Tensor, scales: Tensor | None = None) -> Tensor:
    """Return the weighted sum (b,) of the guidances' losses (k, b)."""
    weights = torch.tensor([g.weight for g in problem.guidance.values()]).to(losses)[:, None]
    return (weights * losses if scales is None else weights * scales * losses).sum(0)


@torch.no_grad()
def judge(
    problem: Problem, images: Tensor, scales: Tensor | None = None
) -> tuple[dict[str, list[float]], Tensor]:
    """Return each guidance's raw score of 8-bit pictures and the loss they make together (b,)."""
    scores = {
        name: guidance.score(from_8_bit(images), problem.prompts)
        for name, guidance in problem.guidance.items()
    }
    losses = torch.stack([g.loss_of(scores[name]) for name, g in problem.guidance.items()])
    return {name: score.tolist() for name, score in scores.items()}, weigh(problem, losses, scales)


@torch.no_grad()
def measure(
    evaluation: Mapping[str, Score], problem: Problem, images: Tensor
) -> dict[str, list[float]]:
    """Return the held-out scores of 8-bit pictures."""
    return {
        name: score(from_8_bit(images), problem.prompts).tolist()
        for name, score in evaluation.items()
    }


@torch.no_grad()
def finish(problem: Problem, x_0: tuple[Tensor, Tensor]) -> Tensor:
    """Return the 8-bit picture (b, 3, h, w) of a final pair: of the first slot that holds x_0."""
    images = problem.decode(x_0[problem.table.x_0_slots[0]])
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


@torch.no_grad()
def render(problem: Problem, pair: tuple[Tensor, Tensor]) -> Tensor:
    """Return the 8-bit pictures (b, 3, h, w) of a pair at x_T, on the CPU."""
    pair = (pair[0].to(problem.device), pair[1].to(problem.device))
    return finish(problem, solve(problem.table, problem.net, pair)).cpu()


def from_8_bit(images: Tensor) -> Tensor:
    """Return uint8 pictures as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
