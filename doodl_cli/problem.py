"""A model, a sampler's table and scores, put together to be optimised or rendered."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from doodl_cli.gradient import choose_memory
from doodl_cli.guidance import Guidance
from doodl_cli.models.latent_model import LatentModel
from doodl_cli.optimize import MicroBatch, Problem
from doodl_cli.sampling import Table

STATE_DEVICES = {"mps": torch.device("cpu")}  # which has no float64


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
) -> Problem:
    """Return the problem of one sample a prompt and seed; on the CPU they are computed one by one.

    Raises ValueError where the memory mode forbids the sampler.
    """
    one_by_one = model.device.type == "cpu"
    n_together = 1 if one_by_one else len(prompts)
    asked = guidance and memory == "auto"  # what it costs to find out
    bytes_per_call = n_together * model.bytes_per_call if asked else math.inf
    memory = choose_memory(table, memory, bytes_per_call)
    captured = bool(guidance) and memory != "full"  # whose graph holds many evaluations at once
    net = model.net(list(prompts), list(negative_prompts), cfg_scale, captured)
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
        micro_batch=MicroBatch(n_together, model.captures.clear),
    )
