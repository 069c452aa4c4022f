"""Hydra at the door: composes a verb's configuration, runs it or a sweep, explains bad input.

Hydra itself creates no file for a job (see configs/run.yaml): the job validates first and makes
its run directory afterwards.
"""

import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from doodl_cli.commands.arguments import parse_arguments, quote
from doodl_cli.commands.destination import check_free
from doodl_cli.commands.help import choices, print_help
from doodl_cli.config import GROUPS, show, unknown_key
from doodl_cli.errors import CannotWrite, UserError

CONFIGS = "doodl_cli.configs"
CONFIG_OF_VERB = {"run": "resume"}  # other verbs have one of their own name
VERSION_BASE = "1.3"
QUOTING = "a value with special characters needs quotes of its own"


def launch(
    verb: str,
    task: Callable[[DictConfig], None],
    check: Callable[[DictConfig], Any],
    words: list[str],
) -> None:
    """Compose the verb's configuration and call `task` on it, or on each job of a sweep.

    Raises UserError for what Hydra or `check` rejects, and whatever the task raises.
    """
    flags, hydra_flags = parse_arguments(verb, words)
    overrides = [quote(word) for word in flags.overrides]
    errors: list[Exception] = []

    def job(cfg: DictConfig) -> None:
        try:
            task(cfg)
        except Exception as error:
            if flags.multirun:
                report(error)
                raise  # Hydra goes on with the other jobs and raises the first error at the end
            errors.append(error)  # raised below, without the lines that Hydra would add

    config_name = CONFIG_OF_VERB.get(verb, verb)
    with explained(verb, flags.overrides):
        if flags.help:
            with composer(flags.config_dir) as compose:
                print_help(verb, resolve(compose(config_name, overrides)))
            return
        if flags.multirun:
            check_sweep(config_name, flags.config_dir, overrides, check)
        os.environ["HYDRA_FULL_ERROR"] = "1"  # let exceptions through, to be explained here
        sys.argv = [f"doodl {verb}", *hydra_flags, *overrides]
        hydra.main(f"pkg://{CONFIGS}", config_name, VERSION_BASE)(job)()
    if errors:
        raise errors[0]


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain values, interpolations resolved."""
    try:
        values = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}") from error
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


def report(error: Exception) -> None:
    """Print the error of one job of a sweep, once."""
    if isinstance(error, UserError | CannotWrite):
        print(f"doodl: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    error.reported = True  # type: ignore[attr-defined]


@contextmanager
def composer(config_dir: str | None) -> Iterator[Callable[..., DictConfig]]:
    """Give a function (config name, overrides) -> configuration."""
    extra = [f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"] if config_dir else []
    with hydra.initialize_config_module(CONFIGS, version_base=VERSION_BASE):
        yield lambda name, overrides: hydra.compose(name, [*extra, *overrides])


def check_sweep(
    config_name: str,
    config_dir: str | None,
    overrides: list[str],
    check: Callable[[DictConfig], Any],
) -> None:
    """Compose every job of a sweep and check that something in it can run, before Hydra writes.

    A job whose values are out of range fails alone, when its turn comes; a sweep of such jobs only
    is refused here, and so is one with an unknown key.
    """
    with composer(config_dir) as compose:
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        try:
            (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(overrides), None)
        except OverrideParseException:
            raise
        except HydraException:
            return  # an interval, which other sweepers draw from
        errors = []
        for job in jobs:
            cfg = compose(config_name, job)
            try:
                check(cfg)
                check_free(Path(cfg.output_dir))
            except UserError as error:
                errors.append(error)
    if len(errors) == len(jobs):
        raise errors[0]


@contextmanager
def explained(verb: str, words: list[str]) -> Iterator[None]:
    """Turn what Hydra raises about the input into a UserError of one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if hasattr(error, "reported"):
            raise
        raise explain(error, verb, words) from error


def explain(error: Exception, verb: str, words: list[str]) -> UserError:
    """Say in one line which override Hydra rejects, and what is allowed.

    Hydra's exceptions carry little but text, so this reads the text; what it does not know comes
    through as Hydra's first line.
    """
    text = str(error)
    if match := re.search(rf"Could not (?:find|load) '({'|'.join(GROUPS)})/([^']*)'", text):
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
