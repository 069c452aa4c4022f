"""Hydra at the door: composes a verb's configuration, runs it or a sweep, explains bad input.

Hydra itself creates no file for a job (see configs/run.yaml): the job validates first and makes
its run directory afterwards.
"""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from doodl_cli.commands.arguments import parse_arguments, quote
from doodl_cli.commands.destination import claim
from doodl_cli.commands.gpus import count_gpus
from doodl_cli.commands.help import choices, print_help
from doodl_cli.commands.sweep import Job, collected, plan_sweep
from doodl_cli.config import GROUPS, show, unknown_key
from doodl_cli.errors import UserError

CONFIGS = "doodl_cli.configs"
CONFIG_OF_VERB = {"run": "resume"}  # other verbs have one of their own name
VERSION_BASE = "1.3"
CHOSEN = (*GROUPS, "suite", "hydra/launcher", "hydra/sweeper")
QUOTING = "a value with special characters needs quotes of its own"


def launch(
    verb: str,
    task: Callable[[DictConfig], float | None],
    check: Callable[[DictConfig], Any],
    words: list[str],
) -> None:
    """Compose the verb's configuration and call `task` on it, or on each job of a sweep.

    Raises UserError for what Hydra or `check` rejects, whatever the task raises, and JobsFailed.
    """
    flags, hydra_flags = parse_arguments(verb, words)
    overrides = [quote(word) for word in flags.overrides]
    errors: list[Exception] = []

    def job(cfg: DictConfig) -> None:
        try:
            task(cfg)
        except Exception as error:
            errors.append(error)  # raised below, without the lines that Hydra would add

    def start(function: Callable[[DictConfig], Any], *more: str) -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through, to be explained here
        sys.argv = [f"doodl {verb}", *hydra_flags, *overrides, *more]
        hydra.main(f"pkg://{CONFIGS}", config_name, VERSION_BASE)(function)()

    config_name = CONFIG_OF_VERB.get(verb, verb)
    register()
    with explained(verb, flags.overrides):
        if flags.help:
            with composer(flags.config_dir) as compose:
                print_help(verb, resolve(compose(config_name, overrides)))
        elif not flags.multirun or flags.cfg or flags.info:
            start(job)
        else:
            with composer(flags.config_dir) as compose:
                plan = plan_sweep(verb, partial(compose, config_name), overrides, check)
            folder = claim(plan.output_dir, plan.pattern)
            with collected(folder, plan):
                place = QuotedString(str(folder), Quote.double).with_quotes()
                start(Job(task, plan.shares_gpus, plan.pooled), f"hydra.sweep.dir={place}")
    if errors:
        raise errors[0]


def register() -> None:
    """Make what configs/hydra/ needs known to Hydra.

    Its files stand in for those of the same name that plugins bring, which Hydra would take as
    schemas of ours, with a warning or an error.
    """
    OmegaConf.register_new_resolver("gpus", count_gpus, replace=True)
    Plugins.instance()  # finds the plugins
    store = ConfigStore.instance().repo["hydra"]
    for group in ("launcher", "sweeper"):
        for name in choices(f"hydra/{group}"):
            if name != "basic":
                store[group].pop(f"{name}.yaml", None)


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain values, interpolations resolved."""
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}") from error
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


@contextmanager
def composer(config_dir: str | None) -> Iterator[Callable[..., DictConfig]]:
    """Give a function (config name, overrides) -> configuration."""
    extra = [f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"] if config_dir else []
    with hydra.initialize_config_module(CONFIGS, version_base=VERSION_BASE):
        yield lambda name, overrides, **options: hydra.compose(
            name, [*extra, *overrides], **options
        )


@contextmanager
def explained(verb: str, words: list[str]) -> Iterator[None]:
    """Turn what Hydra raises about the input into a UserError of one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise explain(error, verb, words) from error


def explain(error: Exception, verb: str, words: list[str]) -> UserError:
    """Say in one line which override Hydra rejects, and what is allowed.

    Hydra's exceptions carry little but text, so this reads the text; what it does not know comes
    through as Hydra's first line.
    """
    text = str(error)
    if match := re.search(rf"Could not (?:find|load) '({'|'.join(CHOSEN)})/([^']*)'", text):
        group, choice = match.groups()
        names = choices(group)
        near = difflib.get_close_matches(choice, names, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return UserError(f"{group}={choice}: must be one of {', '.join(names)}{hint}")
    if isinstance(error, OverrideParseException):
        return UserError(f"{show(error.override)}: not understood; {QUOTING}")
    if match := re.match(r"Could not override '(.*)'", text):
        return unknown_key(match[1], value_of(match[1], words), verb)
    if match := re.match(r"(?s)(?:Ambiguous value for argument|Sweep parameters) '(.*?)=", text):
        word = f"{match[1]}={value_of(match[1], words)}"
        return UserError(f"{word}: several values are {match[1]}=[...], or a sweep, which needs -m")
    if text.startswith("Config group override must be"):  # null, a number, a section
        group = next(group for group in GROUPS if not is_choice(value_of(group, words)))
        value = value_of(group, words)
        return UserError(f"{group}={value}: must be one of {', '.join(choices(group))}")
    return UserError(first_line(error.__cause__ or error))


def value_of(key: str, words: list[str]) -> str | None:
    """Return what the command line gives for a key."""
    values = dict(word.lstrip("+~").split("=", 1) for word in words if "=" in word)
    return values.get(key)


def is_choice(value: str | None) -> bool:
    """Whether Hydra can read a value as the name of a group's file, or a list of them."""
    return value is None or isinstance(yaml.safe_load(value), str | list)


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
