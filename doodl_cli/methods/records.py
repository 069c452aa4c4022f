"""From what was found out about pictures to a record of them."""

from collections.abc import Mapping
from time import perf_counter

import torch
from torch import Tensor

from doodl_cli.optimize import Record
from doodl_cli.optimize.assess import Assessment
from doodl_cli.optimize.loop import to_lists
from doodl_cli.sampling.solve import Pair


def make_record(
    iteration: int,
    x_T: Pair,
    found: Assessment,
    lowest: Tensor,
    began: float,
    x_0: Pair | None = None,
    state: Mapping[str, Tensor] | None = None,
    active: list[bool] | None = None,
) -> Record:
    """Return the record of pictures; the best so far where their judgement is below `lowest` (b,).

    `began`: the `perf_counter` at which the work on them did.
    """
    return Record(
        iteration=iteration,
        loss=found.loss.tolist(),
        guidance=to_lists(found.scores),
        evaluate=to_lists(found.evaluate),
        grad_norm=found.grad_norm.tolist(),
        latent_norm=x_T[0].flatten(1).norm(dim=1).tolist(),
        seconds=perf_counter() - began,
        best=(found.judged < lowest).tolist(),
        active=active or [True] * len(lowest),
        images=found.images.cpu(),
        pair=to_cpu(x_T),
        round_trip_error=found.round_trip_error.tolist(),
        terms=to_lists(found.terms),
        shares=to_lists(found.shares),
        x_0=to_cpu(x_0) if x_0 else None,
        state={name: value.detach().cpu().clone() for name, value in (state or {}).items()},
    )


def to_cpu(pair: Pair) -> Pair:
    return pair[0].cpu(), pair[1].cpu()


def lower(lowest: Tensor, judged: Tensor) -> Tensor:
    """Return the lowest judgement (b,) so far; one that is NaN does not count."""
    return torch.fmin(lowest, judged)


def never_judged(x_T: Pair) -> Tensor:
    """Return the lowest judgement (b,) before the first picture."""
    return torch.full((len(x_T[0]),), torch.inf, device=x_T[0].device)
