"""The optimisation of x_T by the exact gradient of the finished picture's score (DOODL).

Wallace, Gokul, Ermon, Naik 2023, arXiv 2303.13703, algorithm 1. The best iterate is judged on the
whole picture as it is saved (8 bit), so that neither a lucky crop nor a colour outside the screen's
range can win. On the CPU samples are computed one by one, so that a sample's result does not depend
on its batch, not even in the last digit.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from doodl_cli.gradient import average_over_slots, differentiate
from doodl_cli.guidance import Guidance, Score
from doodl_cli.optimize.decline import Decline
from doodl_cli.optimize.noise import make_generators
from doodl_cli.optimize.regularisers import regularise
from doodl_cli.optimize.rules import Settings, Updater
from doodl_cli.sampling import Net, Table, solve


@dataclass(frozen=True)
class Problem:
    """What is optimised: a sampler around a network, and scores of its pictures; b samples.

    `micro_batch` is how many samples are computed at a time, 0 all; `net[k]` must then be the
    network of the samples in the slice k.
    """

    table: Table
    net: Net
    decode: Callable[[Tensor], Tensor]
    guidance: Mapping[str, Guidance]
    evaluation: Mapping[str, Score]
    prompts: Sequence[str]
    seeds: Sequence[int]
    memory: str = "reversible"
    device: torch.device = torch.device("cpu")
    micro_batch: int = 0

    def parts(self) -> Iterator[tuple[slice, "Problem"]]:
        """Yield the problems of at most `micro_batch` samples, each with the slice of them."""
        n_samples = len(self.seeds)
        if not 0 < self.micro_batch < n_samples:
            yield slice(n_samples), self
            return
        for at in range(0, n_samples, self.micro_batch):
            k = slice(at, at + self.micro_batch)
            net = self.net[k]  # type: ignore[index]
            yield k, replace(self, net=net, prompts=self.prompts[k], seeds=self.seeds[k])


@dataclass(frozen=True)
class Record:
    """The state after `iteration` updates; lists hold one value a sample.

    `loss`: what is minimised, on crops. `guidance` and `evaluate`: raw scores of the whole 8-bit
    picture. `best`: this iterate is the sample's best so far. `active`: False once a sample's loss
    has turned NaN or it was stopped; it stays as it was at its best. `images` (b, 3, h, w): uint8.
    `pair`: x_T. `grad_norm` and `round_trip_error` are NaN where nothing was differentiated or
    inverted. `regularisers`: terms on x_T, not weighted. `stopped`: why a sample ends with this
    iterate, None where it goes on or its loss is NaN.
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
    regularisers: dict[str, list[float]] = field(default_factory=dict)
    stopped: list[str | None] = field(default_factory=list)


def optimize(problem: Problem, settings: Settings, x_T: tuple[Tensor, Tensor]) -> Iterator[Record]:
    """Yield n_iters + 1 records, the start first. `x_T` is a pair of (b, c, h, w), float64."""
    generators = make_generators(problem.seeds, "optimize")
    updater = Updater(torch.stack(x_T).to(problem.device), settings, generators)
    n_samples = len(problem.seeds)
    active = torch.ones(n_samples, dtype=torch.bool, device=problem.device)
    lowest = torch.full((n_samples,), torch.inf, device=problem.device)
    best_x_T = updater.x_T.clone()
    decline = Decline(settings.stop_on, settings.patience, n_samples)

    for iteration in range(settings.n_iters + 1):
        began = time.perf_counter()
        pair = (updater.x_T[0].clone(), updater.x_T[1].clone())
        found = assess(problem, pair, generators, differentiated=iteration < settings.n_iters)
        found, terms = add_regularisers(found, pair, settings)
        healthy = found.loss.isfinite() & found.judged.isfinite()
        if found.gradient is not None:
            healthy &= found.grad_norm.isfinite()
        active = active & healthy
        improved = active & (found.judged < lowest)
        lowest = torch.where(improved, found.judged, lowest)
        best_x_T[:, improved] = updater.x_T[:, improved]
        updater.x_T[:, ~active] = best_x_T[:, ~active]
        evaluate = {name: score.tolist() for name, score in found.evaluate.items()}
        stopped: list[str | None] = [None] * n_samples
        if found.gradient is not None:
            stopped = decline.judge(evaluate, iteration)
        yield Record(
            iteration=iteration,
            loss=found.loss.tolist(),
            guidance={name: score.tolist() for name, score in found.scores.items()},
            evaluate=evaluate,
            grad_norm=found.grad_norm.tolist(),
            latent_norm=pair[0].flatten(1).norm(dim=1).tolist(),
            seconds=time.perf_counter() - began,
            best=improved.tolist(),
            active=active.tolist(),
            images=found.images.cpu(),
            pair=(pair[0].cpu(), pair[1].cpu()),
            round_trip_error=found.round_trip_error.tolist(),
            regularisers={name: term.tolist() for name, term in terms.items()},
            stopped=stopped,
        )
        active = active & torch.tensor([not reason for reason in stopped], device=problem.device)
        if found.gradient is None or not active.any():
            return
        updater.step(found.gradient, active)


@dataclass(frozen=True)
class Assessment:
    """What is found out about one iterate, a value a sample (b,).

    `judged`: the loss on the whole 8-bit picture, whose raw `scores` and held-out `evaluate` stand
    beside it. `gradient` is (2, b, c, h, w), or None where it was not asked for.
    """

    loss: Tensor
    judged: Tensor
    scores: dict[str, Tensor]
    evaluate: dict[str, Tensor]
    images: Tensor
    gradient: Tensor | None
    grad_norm: Tensor
    round_trip_error: Tensor


def assess(
    problem: Problem,
    pair: tuple[Tensor, Tensor],
    generators: Sequence[torch.Generator],
    differentiated: bool,
) -> Assessment:
    """Generate from the pair (b, c, h, w), score the pictures, and differentiate the loss."""
    return join(
        [
            assess_together(part, (pair[0][k], pair[1][k]), generators[k], differentiated)
            for k, part in problem.parts()
        ]
    )


def assess_together(
    problem: Problem,
    pair: tuple[Tensor, Tensor],
    generators: Sequence[torch.Generator],
    differentiated: bool,
) -> Assessment:
    def loss(x_0: Tensor) -> tuple[Tensor, None]:
        return total_loss(problem, problem.decode(x_0), generators), None

    gradient, unknown = None, torch.full((len(pair[0]),), torch.nan, device=problem.device)
    grad_norm = round_trip_error = unknown
    if differentiated:
        result = differentiate(problem.table, problem.net, pair, loss, problem.memory)
        value, x_0, gradient = result.loss, result.x_0, torch.stack(result.pair)
        grad_norm = norm_of(gradient)
        round_trip_error = result.round_trip_error
    else:
        with torch.no_grad():
            x_0 = solve(problem.table, problem.net, pair)
            value, _ = average_over_slots(problem.table, x_0, loss)
    images = finish(problem, x_0)
    scores, judged = judge(problem, images)
    evaluate = measure(problem.evaluation, problem, images)
    return Assessment(
        value, judged, scores, evaluate, images, gradient, grad_norm, round_trip_error
    )


def norm_of(gradient: Tensor) -> Tensor:
    """Return the norm (b,) of the mean over the pair of a gradient (2, b, c, h, w)."""
    return gradient.mean(0).flatten(1).norm(dim=1)


def add_regularisers(
    found: Assessment, pair: tuple[Tensor, Tensor], settings: Settings
) -> tuple[Assessment, dict[str, Tensor]]:
    """Add the regularisers to the loss and the gradient, and return their values (b,) too."""
    if not settings.regularisers:
        return found, {}
    terms, slope = regularise(torch.stack(pair), settings.regularisers)
    weighted = [settings.regularisers[name] * term for name, term in terms.items()]
    found = replace(found, loss=found.loss + torch.stack(weighted).sum(0))
    if found.gradient is not None:
        gradient = found.gradient + slope
        found = replace(found, gradient=gradient, grad_norm=norm_of(gradient))
    return found, terms


def join(parts: Sequence[Assessment]) -> Assessment:
    """Put the samples of several parts together."""
    if len(parts) == 1:
        return parts[0]
    columns = {
        field.name: [getattr(part, field.name) for part in parts] for field in fields(parts[0])
    }
    joined: dict[str, Any] = {}
    for name, values in columns.items():
        if isinstance(values[0], dict):
            joined[name] = {key: torch.cat([value[key] for value in values]) for key in values[0]}
        elif name == "gradient":
            joined[name] = None if values[0] is None else torch.cat(values, 1)
        else:
            joined[name] = torch.cat(values)
    return Assessment(**joined)


def total_loss(problem: Problem, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Return the weighted sum of the guidances' losses (b,)."""
    terms = [
        guidance.weight * guidance.loss(images, problem.prompts, generators)
        for guidance in problem.guidance.values()
    ]
    return torch.stack(terms).sum(0)


@torch.no_grad()
def judge(problem: Problem, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Return each guidance's raw score of 8-bit pictures and the loss they make together (b,)."""
    scores = {
        name: guidance.score(from_8_bit(images), problem.prompts)
        for name, guidance in problem.guidance.items()
    }
    terms = [g.weight * g.loss_of(scores[name]) for name, g in problem.guidance.items()]
    return scores, torch.stack(terms).sum(0)


@torch.no_grad()
def measure(evaluation: Mapping[str, Score], problem: Problem, images: Tensor) -> dict[str, Tensor]:
    """Return the held-out scores of 8-bit pictures."""
    return {name: score(from_8_bit(images), problem.prompts) for name, score in evaluation.items()}


@torch.no_grad()
def finish(problem: Problem, x_0: tuple[Tensor, Tensor]) -> Tensor:
    """Return the 8-bit picture (b, 3, h, w) of a final pair: of the first slot that holds x_0."""
    return to_8_bit(problem.decode(x_0[problem.table.x_0_slots[0]]))


@torch.no_grad()
def render(problem: Problem, pair: tuple[Tensor, Tensor]) -> Tensor:
    """Return the 8-bit pictures (b, 3, h, w) of a pair at x_T, on the CPU."""
    u, v = pair[0].to(problem.device), pair[1].to(problem.device)
    pictures = [
        finish(part, solve(part.table, part.net, (u[k], v[k]))) for k, part in problem.parts()
    ]
    return torch.cat(pictures).cpu()


def to_8_bit(images: Tensor) -> Tensor:
    """Return pictures in [-1, 1] as uint8, cut at the ends of the range."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_8_bit(images: Tensor) -> Tensor:
    """Return uint8 pictures as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
