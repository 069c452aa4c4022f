"""The optimisation of x_T by the exact gradient of the finished picture's score (DOODL).

Wallace, Gokul, Ermon, Naik 2023, arXiv 2303.13703, algorithm 1. The best iterate is judged on the
whole picture as it is saved (8 bit), so that neither a lucky crop nor a colour outside the screen's
range can win.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from doodl_cli.optimize.assess import Assessment, Problem, assess, norm_of
from doodl_cli.optimize.decline import Decline
from doodl_cli.optimize.noise import make_generators
from doodl_cli.optimize.regularisers import regularise
from doodl_cli.optimize.rules import Settings, Updater
from doodl_cli.optimize.state import restore, snapshot


@dataclass(frozen=True)
class Record:
    """The state after `iteration` updates; lists hold one value a sample.

    `loss`: what is minimised, on crops. `guidance` and `evaluate`: raw scores of the whole 8-bit
    picture. `best`: this iterate is the sample's best so far. `active`: False once a sample's loss
    has turned NaN or it was stopped; it stays as it was at its best. `images` (b, 3, h, w): uint8.
    `pair`: x_T. `grad_norm` and `round_trip_error` are NaN where nothing was differentiated or
    inverted. `terms`: each guidance's loss, not weighted; `shares`: of their gradients at the
    picture. `regularisers`: terms on x_T, not weighted. `stopped`: why a sample ends with this
    iterate, None where it goes on or its loss is NaN. `x_0`: the pair that the picture was decoded
    from, where x_T alone does not make it, None elsewhere. `state`: what goes on from after this
    record, by name, on the CPU; empty where the batch begins again.
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
    regularisers: dict[str, list[float]] = field(default_factory=dict)
    stopped: list[str | None] = field(default_factory=list)
    x_0: tuple[Tensor, Tensor] | None = None
    state: dict[str, Tensor] = field(default_factory=dict)


def optimize(
    problem: Problem,
    settings: Settings,
    x_T: tuple[Tensor, Tensor],
    state: Mapping[str, Tensor] | None = None,
    n_before: int = 0,
) -> Iterator[Record]:
    """Yield n_iters + 1 records, the start first. `x_T` is a pair of (b, c, h, w), float64.

    With the `state` of an earlier record: yield those after it, as if there had been no break.
    `n_before`: how many records of the samples came before, which the iterations count.
    """
    generators = make_generators(problem.seeds, "optimize")
    updater = Updater(torch.stack(x_T).to(problem.device), settings, generators)
    n_samples = len(problem.seeds)
    active = torch.ones(n_samples, dtype=torch.bool, device=problem.device)
    lowest = torch.full((n_samples,), torch.inf, device=problem.device)
    best_x_T = updater.x_T.clone()
    decline = Decline(settings.stop_on, settings.patience, n_samples)
    scales: Tensor | None = None
    first = 0
    if state is not None:
        first = int(state["iteration"])
        restore(updater, decline, generators, state)
        active, lowest, best_x_T = (
            state[name].to(problem.device) for name in ("active", "lowest", "best_x_T")
        )
        scales = state["scales"].to(problem.device) if "scales" in state else None
        if not active.any():
            return

    for iteration in range(first, settings.n_iters + 1):
        began = time.perf_counter()
        pair = (updater.x_T[0].clone(), updater.x_T[1].clone())
        differentiated = iteration < settings.n_iters
        found = assess(problem, pair, generators, differentiated, settings.balance, scales)
        scales = found.scales
        found, regularisers = add_regularisers(found, pair, settings)
        healthy = found.loss.isfinite() & found.judged.isfinite()
        if found.gradient is not None:
            healthy &= found.grad_norm.isfinite()
        active = active & healthy
        improved = active & (found.judged < lowest)
        lowest = torch.where(improved, found.judged, lowest)
        best_x_T[:, improved] = updater.x_T[:, improved]
        updater.x_T[:, ~active] = best_x_T[:, ~active]
        evaluate = to_lists(found.evaluate)
        stopped: list[str | None] = [None] * n_samples
        if found.gradient is not None:
            stopped = decline.judge(evaluate, n_before + iteration)
        going_on = torch.tensor([not reason for reason in stopped], device=problem.device)
        was_active, active = active, active & going_on
        if found.gradient is not None and active.any():
            updater.step(found.gradient, active)
        kept = {"active": active, "lowest": lowest, "best_x_T": best_x_T}
        if scales is not None:
            kept["scales"] = scales
        yield Record(
            iteration=n_before + iteration,
            loss=found.loss.tolist(),
            guidance=to_lists(found.scores),
            evaluate=evaluate,
            grad_norm=found.grad_norm.tolist(),
            latent_norm=pair[0].flatten(1).norm(dim=1).tolist(),
            seconds=time.perf_counter() - began,
            best=improved.tolist(),
            active=was_active.tolist(),
            images=found.images.cpu(),
            pair=(pair[0].cpu(), pair[1].cpu()),
            round_trip_error=found.round_trip_error.tolist(),
            terms=to_lists(found.terms),
            shares=to_lists(found.shares),
            regularisers=to_lists(regularisers),
            stopped=stopped,
            state=snapshot(iteration + 1, updater, decline, generators, kept),
        )
        if not active.any():
            return


def to_lists(values: dict[str, Tensor]) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in values.items()}


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
