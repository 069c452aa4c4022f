"""A model, a sampler's table and scores, put together to be optimised or rendered."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from doodl_cli.gradient import choose_memory
from doodl_cli.guidance import Guidance
from doodl_cli.models.capture import release_graphs
from doodl_cli.models.latent_model import LatentModel
from doodl_cli.optimize import MicroBatch, Problem
from doodl_cli.sampling import Table

SMALL_BATCH = 2**33  # bytes of its whole graph: one that a GPU computes faster than it is launched
STATE_DEVICES = {"mps": torch.device("cpu")}  # which has no float64


def count_together(model: LatentModel, n_samples: int) -> int:
    """Return how many samples of a batch are computed together: on the CPU one by one."""
    return 1 if model.device.type == "cpu" else n_samples


def find_memory(model: LatentModel, table: Table, memory: str, n_samples: int) -> str:
    """Return the memory mode of a batch: what `auto` stands for there, else `memory` itself.

    Raises ValueError where the mode forbids the sampler.
    """
    if memory != "auto":
        return choose_memory(table, memory)
    bytes_per_call = count_together(model, n_samples) * model.bytes_per_call
    return choose_memory(table, memory, bytes_per_call)


def pose_problem(
    model: LatentModel,
    table: Table,
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    seeds: Sequence[int],
    cfg_scale: float,
    memory: str,
    guidance: Mapping[str, Guidance],
    evaluation: Mapping[str, Callable[..., Tensor]],
    compiled: bool = False,
    at_the_end: bool = True,
) -> Problem:
    """Return the problem of one sample a prompt and seed; on the CPU they are computed one by one.

    A `compiled` UNet is always replayed from CUDA graphs, so that a noise renders as it did when it
    was optimised. `at_the_end`: gradients are taken once the picture is finished, which `memory` is
    about; else each is taken on the way. Raises ValueError where the memory mode forbids the
    sampler.
    """
    n_together = count_together(model, len(prompts))
    if guidance and not compiled:
        memory = find_memory(model, table, memory, len(prompts))
    else:  # the whole graph is not kept, so what it takes need not be known
        memory = choose_memory(table, memory)
    whole = bool(guidance) and memory == "full" and at_the_end
    apart = whole and table.n_calls * n_together * model.bytes_per_call <= SMALL_BATCH
    one_graph = not whole  # which would replay all twice
    captured = (bool(guidance) or compiled) and (one_graph or apart)
    net = model.net(list(prompts), list(negative_prompts), cfg_scale, captured, apart)
    return Problem(
        table=table,
        net=net,
        decode=model.decode,
        guidance=guidance,
        evaluation=evaluation,
        prompts=prompts,
        seeds=seeds,
        memory=memory,
        device=STATE_DEVICES.get(model.device.type, model.device),
        micro_batch=MicroBatch(n_together, release_graphs),
        one_by_one=model.large,
    )
