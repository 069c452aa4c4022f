"""A diffusers scheduler's settings as a `Schedule`; the scheduler is not used otherwise.

They are read as diffusers' DDIMScheduler reads them, whichever scheduler wrote them, because every
sampler here walks DDIM's grid. What other noise processes than DDIM's ask for is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doodl_cli.sampling.schedule import (
    PREDICTIONS,
    SPACINGS,
    Schedule,
    cumulate,
    linear,
    scaled_linear,
    squared_cosine,
)

BETAS = {"linear": linear, "scaled_linear": scaled_linear}
OTHER_PROCESSES = ("EDM", "Flow", "VQ", "CM")


def read_settings(path: Path) -> dict[str, Any]:
    """Return the content of a scheduler_config.json."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_schedule(settings: Mapping[str, Any]) -> Schedule:
    """Return the schedule that a scheduler's settings describe.

    Raises ValueError for what is not supported.
    """
    name = settings.get("_class_name", "")
    if name.startswith(OTHER_PROCESSES):
        raise ValueError(f"scheduler {name}: must be of a model with DDIM's noise schedule")
    alpha_bar = cumulate(read_betas(settings), settings.get("rescale_betas_zero_snr", False))
    return Schedule(
        alpha_bar=alpha_bar,
        alpha_bar_end=1.0 if settings.get("set_alpha_to_one", True) else alpha_bar[0],
        prediction=choose(settings, "prediction_type", "epsilon", PREDICTIONS),
        spacing=choose(settings, "timestep_spacing", "leading", SPACINGS),
        offset=settings.get("steps_offset", 0),
    )


def read_betas(settings: Mapping[str, Any]) -> tuple[float, ...]:
    """Return the betas that the settings list or describe."""
    trained = settings.get("trained_betas")
    if trained is not None:
        return tuple(float(beta) for beta in trained)
    n_train = settings.get("num_train_timesteps", 1000)
    kind = choose(settings, "beta_schedule", "linear", (*BETAS, "squaredcos_cap_v2"))
    if kind == "squaredcos_cap_v2":
        return squared_cosine(n_train)
    start, end = settings.get("beta_start", 0.0001), settings.get("beta_end", 0.02)
    return BETAS[kind](start, end, n_train)


def choose(settings: Mapping[str, Any], key: str, default: str, allowed: tuple[str, ...]) -> str:
    """Return a setting. Raises ValueError for what is not allowed."""
    value = settings.get(key, default)
    if value not in allowed:
        raise ValueError(f"{key} {value!r}: must be one of {', '.join(allowed)}")
    return value
