"""One iterate of x_T: its picture, the picture's scores, and the gradient of the loss.

On the CPU samples are computed one by one, so that a sample's result does not depend on its batch,
not even in the last digit.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from doodl_cli.errors import lacks_memory
from doodl_cli.gradient import average_over_slots, differentiate
from doodl_cli.guidance import Guidance, Score, Terms, combine, join_terms
from doodl_cli.sampling import Net, Table, solve
from doodl_cli.sampling.solve import Pair

T = TypeVar("T")
Found = tuple[Terms, Tensor]  # of a slot: the guidances' terms, and the 8-bit pictures


def nothing() -> None:
    """Give back no memory."""


@dataclass
class MicroBatch:
    """How many samples are computed at a time: fewer, once they did not fit into the memory.

    `release` gives back memory that is held for so many samples.
    """

    size: int
    release: Callable[[], None] = nothing

    def halve(self, n_samples: int) -> None:
        """Take half as many from now on."""
        self.size = (n_samples + 1) // 2
        self.release()
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Problem:
    """What is optimised: a sampler around a network, and scores of its pictures; b samples.

    The networks may be on another device than the pair, which is on `device`. `net[k]` must be the
    network of the samples in the slice k, where `micro_batch` is smaller than the batch. With
    `one_by_one` a sample's picture is differentiated before the next is decoded.
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
    micro_batch: MicroBatch = field(default_factory=lambda: MicroBatch(sys.maxsize))
    one_by_one: bool = False

    def compute(
        self, function: Callable[[slice, "Problem"], T], *drawn: Sequence[torch.Generator]
    ) -> list[T]:
        """Return the function of every slice of the samples and their problem, in order.

        A slice that does not fit into the GPU's memory is computed in halves, as are all that
        come after it. `drawn` are generators, one a sample, that the function draws from.
        """
        found: list[T] = []
        at, n_samples = 0, len(self.seeds)
        while at < n_samples:
            k = slice(at, min(at + self.micro_batch.size, n_samples))
            states = [(one, one.get_state()) for generators in drawn for one in generators[k]]
            try:
                found.append(function(k, self.part(k)))
                at = k.stop
            except RuntimeError as error:
                if k.stop - k.start == 1 or not lacks_memory(error):
                    raise
            if at != k.stop:  # after the error, which held on to what it was about
                self.micro_batch.halve(k.stop - k.start)
                for generator, state in states:
                    generator.set_state(state)
        return found

    def part(self, k: slice) -> "Problem":
        """Return the problem of some of the samples."""
        if k == slice(0, len(self.seeds)):
            return self
        net = self.net[k]  # type: ignore[index]
        return replace(self, net=net, prompts=self.prompts[k], seeds=self.seeds[k])


@dataclass(frozen=True)
class Assessment:
    """What is found out about one iterate, a value a sample (b,).

    `judged`: the loss on the whole 8-bit picture, whose raw `scores` and held-out `evaluate` stand
    beside it. `terms`: each guidance's loss on crops, not weighted; `shares`: of the norms of their
    gradients at the picture; `scales` (k, b): what balancing multiplies their weights with, or
    None. `gradient` is (2, b, c, h, w), or None where it was not asked for.
    """

    loss: Tensor
    judged: Tensor
    scores: dict[str, Tensor]
    evaluate: dict[str, Tensor]
    terms: dict[str, Tensor]
    shares: dict[str, Tensor]
    scales: Tensor | None
    images: Tensor
    gradient: Tensor | None
    grad_norm: Tensor
    round_trip_error: Tensor


def assess(
    problem: Problem,
    pair: tuple[Tensor, Tensor],
    generators: Sequence[torch.Generator],
    differentiated: bool,
    balance: bool = False,
    scales: Tensor | None = None,
) -> Assessment:
    """Generate from the pair (b, c, h, w), score the pictures, and differentiate the loss.

    With `balance` the loss is weighed by `scales` (k, b), those of the first iterate: all iterates
    are judged by one measure.
    """

    def assess_part(k: slice, part: Problem) -> Assessment:
        own_scales = None if scales is None else scales[:, k]
        own_pair = (pair[0][k], pair[1][k])
        return assess_together(part, own_pair, generators[k], differentiated, balance, own_scales)

    return join(problem.compute(assess_part, generators))


def assess_together(
    problem: Problem,
    pair: tuple[Tensor, Tensor],
    generators: Sequence[torch.Generator],
    differentiated: bool,
    balance: bool,
    scales: Tensor | None,
) -> Assessment:
    if not differentiated:
        with torch.no_grad():
            x_0 = solve(problem.table, problem.net, pair)
        return assess_x_0(problem, x_0, generators, balance, scales)
    loss = make_loss(problem, generators, balance)
    result = differentiate(problem.table, problem.net, pair, loss, problem.memory)
    found = sum_up(problem, result.loss, result.aux, balance, scales)
    gradient = torch.stack(result.pair)
    return replace(
        found,
        gradient=gradient,
        grad_norm=norm_of(gradient),
        round_trip_error=result.round_trip_error,
    )


def make_loss(
    problem: Problem, generators: Sequence[torch.Generator], balance: bool = False
) -> Callable[[Tensor], tuple[Tensor, Found]]:
    """Return the loss of latents x_0 (b, c, h, w): one value a sample, and what is found."""

    def loss(x_0: Tensor, k: slice = slice(None)) -> tuple[Tensor, Found]:
        images = problem.decode(x_0)
        value, terms = combine(problem.guidance, images, problem.prompts[k], generators[k], balance)
        return value, (terms, to_8_bit(images.detach()))

    def loss_one_by_one(x_0: Tensor) -> tuple[Tensor, Found]:
        found: list[Found] = []
        value = OneByOne.apply(x_0, loss, found)
        terms, pictures = zip(*found, strict=True)
        return value, (join_terms(terms), torch.cat(pictures))

    return loss_one_by_one if problem.one_by_one else loss


class OneByOne(torch.autograd.Function):
    """A loss of samples each by itself, whose gradient is taken before the next one's turn.

    So no more than one sample's graph is held at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_0: Tensor,
        loss: Callable[[Tensor, slice], tuple[Tensor, Found]],
        found: list[Found],
    ) -> Tensor:
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        for k in range(len(x_0)):
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                leaf = x_0[k : k + 1].detach().requires_grad_(ctx.needs_input_grad[0])
                value, other = loss(leaf, slice(k, k + 1))
                if ctx.needs_input_grad[0]:
                    gradients += torch.autograd.grad(value.sum(), leaf, materialize_grads=True)
            values.append(value.detach())
            found.append(other)
        ctx.gradients = gradients
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        gradient = torch.cat(ctx.gradients)
        return cotangents[0].to(gradient.device).view(-1, 1, 1, 1) * gradient, None, None


@torch.no_grad()
def assess_x_0(
    problem: Problem,
    x_0: Pair,
    generators: Sequence[torch.Generator],
    balance: bool = False,
    scales: Tensor | None = None,
) -> Assessment:
    """Score the pictures of a finished pair (b, c, h, w), without differentiating."""
    loss = make_loss(problem, generators, balance)
    value, slots = average_over_slots(problem.table, x_0, loss)
    return sum_up(problem, value, slots, balance, scales)


def sum_up(
    problem: Problem,
    value: Tensor,
    found: Sequence[Found],
    balance: bool,
    scales: Tensor | None,
) -> Assessment:
    """Return what a finished pair's loss (b,) and what was found of each slot say, no gradient."""
    slots, pictures = zip(*found, strict=True)
    losses = torch.stack([slot.losses for slot in slots]).mean(0)
    shares = torch.stack([slot.shares for slot in slots]).mean(0)
    if balance:
        scales = torch.stack([x.scales for x in slots]).mean(0) if scales is None else scales
        value = weigh(problem, losses, scales)
    images = pictures[0]  # as `finish` has it: of the first slot that holds x_0
    scores, judged = judge(problem, images, scales)
    unknown = torch.full((len(images),), torch.nan, device=problem.device)
    return Assessment(
        loss=value.to(problem.device),
        judged=judged.to(problem.device),
        scores=scores,
        evaluate=measure(problem, images),
        terms=dict(zip(problem.guidance, losses, strict=True)),
        shares=dict(zip(problem.guidance, shares, strict=True)),
        scales=scales,
        images=images,
        gradient=None,
        grad_norm=unknown,
        round_trip_error=unknown,
    )


def join(parts: Sequence[Assessment]) -> Assessment:
    """Put the samples of several parts together."""
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {}
    for name in (one.name for one in fields(Assessment)):
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], dict):
            joined[name] = {key: torch.cat([value[key] for value in values]) for key in values[0]}
        elif name in ("gradient", "scales"):
            joined[name] = None if values[0] is None else torch.cat(values, 1)
        else:
            joined[name] = torch.cat(values)
    return Assessment(**joined)


def norm_of(gradient: Tensor) -> Tensor:
    """Return the norm (b,) of the mean over the pair of a gradient (2, b, c, h, w)."""
    return gradient.mean(0).flatten(1).norm(dim=1)


def weigh(problem: Problem, losses: Tensor, scales: Tensor | None = None) -> Tensor:
    """Return the weighted sum (b,) of the guidances' losses (k, b)."""
    weights = torch.tensor([g.weight for g in problem.guidance.values()]).to(losses)[:, None]
    return (weights * losses if scales is None else weights * scales.to(losses) * losses).sum(0)


@torch.no_grad()
def judge(
    problem: Problem, images: Tensor, scales: Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Return each guidance's raw score of 8-bit pictures and the loss they make together (b,)."""
    scores = {
        name: guidance.score(from_8_bit(images), problem.prompts)
        for name, guidance in problem.guidance.items()
    }
    losses = torch.stack([g.loss_of(scores[name]) for name, g in problem.guidance.items()])
    return scores, weigh(problem, losses, scales)


@torch.no_grad()
def measure(problem: Problem, images: Tensor) -> dict[str, Tensor]:
    """Return the held-out scores of 8-bit pictures."""
    return {
        name: score(from_8_bit(images), problem.prompts)
        for name, score in problem.evaluation.items()
    }


@torch.no_grad()
def finish(problem: Problem, x_0: Pair) -> Tensor:
    """Return the 8-bit picture (b, 3, h, w) of a final pair: of the first slot that holds x_0."""
    return to_8_bit(problem.decode(x_0[problem.table.x_0_slots[0]]))


@torch.no_grad()
def render(problem: Problem, pair: Pair, finished: bool = False) -> Tensor:
    """Return the 8-bit pictures (b, 3, h, w), on the CPU, of a pair at x_T; x_0 if `finished`."""
    u, v = pair[0].to(problem.device), pair[1].to(problem.device)

    def render_part(k: slice, part: Problem) -> Tensor:
        x_0 = (u[k], v[k]) if finished else solve(part.table, part.net, (u[k], v[k]))
        return finish(part, x_0).cpu()

    return torch.cat(problem.compute(render_part))


def to_8_bit(images: Tensor) -> Tensor:
    """Return pictures in [-1, 1] as uint8, cut at the ends of the range."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_8_bit(images: Tensor) -> Tensor:
    """Return uint8 pictures as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
