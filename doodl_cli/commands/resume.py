"""Going on with a run: its own configuration counts, and the command line may not contradict it."""

import json
import os
from pathlib import Path
from typing import Any

from doodl_cli.commands.saved import read_settings
from doodl_cli.config import Config, flatten, read_config, show
from doodl_cli.errors import UserError
from doodl_cli.requests import Request

OWN_KEYS = ("resume", "force", "max_seconds")
# What the state on the disk was made for; no force can change it.
FIXED = (
    "prompt", "prompts", "negative_prompt", "seed", "n_seeds", "batch_size", "shard", "init",
    "model", "method.name", "output_dir", "optimizer.name", "optimizer.balance",
    "optimizer.n_candidates",
)  # fmt: skip
LEFT_OPEN = (("device", "auto"), ("sampler.gamma", None))  # what a run chooses, and saves


def open_run(run: str) -> tuple[Config, list[Request], dict[str, Any]]:
    """Return the configuration, the samples and the metadata of a run that may be unfinished.

    Raises UserError for what is not the directory of `doodl run`.
    """
    config, requests = read_settings(run, "resume")
    try:
        metadata = json.loads((Path(run).expanduser() / "metadata.json").read_text("utf-8"))
    except FileNotFoundError:
        metadata = {}  # killed before it was written
    except (OSError, ValueError) as error:
        raise UserError(f"resume={run}: metadata.json cannot be read ({error})") from error
    if not config.guidance:
        raise UserError(f"resume={run}: must be a directory of `doodl run`: it has no guidance")
    return config, requests, metadata


def change(saved: Config, composed: Config, given: list[str], force: bool, run: str) -> Config:
    """Return the configuration to go on with: the saved one, with what is given if forced.

    `composed` is what the command line alone makes, `given` the keys that are on it.
    Raises UserError for a key that contradicts the run.
    """
    keys = [key for key in given if key not in OWN_KEYS]
    everything = "experiment" in keys
    before, now = flatten(saved.to_dict()), flatten(composed.to_dict())
    changed = [
        key
        for key in dict.fromkeys([*now, *before])
        if (everything and key != "output_dir") or any(is_below(key, group) for group in keys)
        if (key in before) != (key in now) or not same(key, before.get(key), now.get(key))
    ]
    for key in changed:
        if any(is_below(key, fixed) for fixed in FIXED):
            raise UserError(
                f"{key}={show(now.get(key))}: resume={run} was begun with "
                f"{show(before.get(key))}; must stay so"
            )
        if not force:
            raise UserError(
                f"{key}={show(now.get(key))}: resume={run} was begun with "
                f"{show(before.get(key))}; must stay so, unless force=true"
            )
    values = saved.to_dict()
    for key in changed:
        put(values, key.split("."), now.get(key), key in now)
    return read_config(values)


def put(values: dict[str, Any], path: list[str], value: Any, present: bool) -> None:
    """Set or delete a value at a path; a section of a group that is left empty goes too."""
    *groups, name = path
    sections = [values]
    for group in groups:
        sections.append(sections[-1].setdefault(group, {}))
    if present:
        sections[-1][name] = value
        return
    sections[-1].pop(name, None)
    if len(groups) > 1 and not sections[-1]:
        sections[-2].pop(groups[-1], None)


def is_below(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}.")


def same(key: str, before: Any, now: Any) -> bool:
    """Whether two values mean the same; a saved path is absolute, what is left open chosen."""
    if before == now or (key, now) in LEFT_OPEN:
        return True
    return isinstance(now, str) and before == os.path.abspath(os.path.expanduser(now))
