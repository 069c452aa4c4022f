"""All that the next iteration depends on, as named tensors, so that it can be put on a disk.

The generators are part of it: an optimisation that goes on from its state draws the crops and the
perturbations that it would have drawn.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from doodl_cli.optimize.decline import Decline
from doodl_cli.optimize.rules import Updater

MEMORY = "optimizer."  # before the names of what the update rule remembers


def snapshot(
    iteration: int,
    updater: Updater,
    decline: Decline,
    generators: Sequence[Generator],
    kept: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return copies on the CPU of everything before `iteration`; `kept` is the loop's own."""
    memory = updater.optimizer.state[updater.x_T]
    state = {
        **kept,
        "iteration": torch.tensor(iteration),
        "x_T": updater.x_T,
        "norm": updater.norm,
        "generators": torch.stack([generator.get_state() for generator in generators]),
        "highest": torch.tensor(decline.highest, dtype=torch.float64),
        "since": torch.tensor(decline.since),
        **{MEMORY + name: value for name, value in memory.items() if value is not None},
    }
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }


def restore(
    updater: Updater,
    decline: Decline,
    generators: Sequence[Generator],
    state: Mapping[str, Tensor],
) -> None:
    """Put back what `snapshot` took, but what is the loop's own."""
    device = updater.x_T.device
    updater.iteration = int(state["iteration"])
    updater.x_T.copy_(state["x_T"])
    updater.norm = state["norm"].to(device)
    for name, value in state.items():
        if name.startswith(MEMORY):
            # A scalar, Adam's count of steps, stays on the CPU, where torch keeps it.
            value = value.to(device) if value.ndim else value.clone()
            updater.optimizer.state[updater.x_T][name.removeprefix(MEMORY)] = value
    for generator, position in zip(generators, state["generators"], strict=True):
        generator.set_state(position.clone())  # a view of a row crashes torch
    decline.highest = state["highest"].tolist()
    decline.since = state["since"].tolist()
