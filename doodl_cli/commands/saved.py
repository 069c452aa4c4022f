"""What a configuration refers to: files and packages, checked before anything heavy is loaded."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import yaml

from doodl_cli.config import Bdia, Config, ImageInit, LatentsInit, read_config, show
from doodl_cli.errors import UserError
from doodl_cli.requests import Request, list_requests, read_requests

NEEDS_NO_KEY = ("offline", "dryrun", "disabled")  # values of WANDB_MODE


def read_run(run: str, key: str) -> tuple[Config, list[Request], list[Path]]:
    """Return a run directory's configuration, its samples and the files of their latents.

    `key` is what the user gave the run by. Raises UserError.
    """
    config, requests = read_settings(run, key)
    folder = Path(run).expanduser()
    latents = [folder / f"samples/{request.name}/latents.safetensors" for request in requests]
    for path in latents:
        if not path.is_file():
            raise UserError(f"{key}={run}: must be a finished run ({path} is missing)")
    return config, requests, latents


def read_settings(run: str, key: str) -> tuple[Config, list[Request]]:
    """Return a run directory's configuration and its samples. Raises UserError."""
    folder = Path(run).expanduser()
    try:
        values = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        config = read_config(values)
        return config, read_requests(config, folder)
    except UserError as error:
        raise UserError(f"{key}={run}: config.yaml: {error}") from error
    except (OSError, ValueError, TypeError, RuntimeError, yaml.YAMLError) as error:
        raise UserError(
            f"{key}={run}: must be a run directory (no readable config.yaml)"
        ) from error


def check_plain(config: Config, verb: str) -> None:
    """Check that a verb that guides nothing is not given a method. Raises UserError."""
    if config.method.name != "doodl":
        raise UserError(
            f"method={config.method.name}: `doodl {verb}` guides nothing; must be left out"
        )


def check_start(config: Config) -> Config:
    """Check that what x_T starts from is there, and take of a saved run what is left open.

    That is the prompt, and BDIA's gamma. Raises UserError.
    """
    init = config.init
    if isinstance(init, ImageInit):
        from doodl_cli.pictures import read_picture  # 0.1 s, which --help need not take

        read_picture(str(init.path), "init.path")
    if not isinstance(init, LatentsInit):
        return config
    saved, _, latents = read_run(str(init.path), "init.path")
    if saved.guides_on_the_way and init.which != "initial":
        raise UserError(
            f"init.which={init.which}: init.path={init.path} was guided on the way from x_T "
            f"(method={saved.method.name}), so that no x_T renders it; must be initial"
        )
    n_samples = len(list_requests(replace(config, shard=None)))
    if len(latents) not in (1, n_samples):
        raise UserError(
            f"seed={show(config.seed)}: init.path={init.path} holds {len(latents)} samples; "
            f"must be as many, as in seed={show(saved.seed)}"
        )
    if isinstance(saved.sampler, Bdia) and replace(saved.sampler, gamma=None) == config.sampler:
        config = replace(config, sampler=saved.sampler)
    differ = [
        name
        for name in ("sampler", "cfg_scale", "negative_prompt")
        if getattr(saved, name) != getattr(config, name)
    ]
    if differ:
        # Said, not refused: another sampler may well be what is asked for.
        print(
            f"init.path={init.path}: other {' and '.join(differ)} than there, so x_T renders "
            "another picture",
            file=sys.stderr,
        )
    given = config.prompt is not None or config.prompts is not None
    return config if given else replace(config, prompt=saved.prompt)


def check_sinks(config: Config) -> None:
    """Check that what `log` names is installed and may be written to. Raises UserError."""
    for name in config.sinks:
        check_package(f"log={name}", name)
    if "wandb" in config.sinks:
        check_wandb()


def check_wandb() -> None:
    """Check that Weights & Biases has a key, unless it stays offline. Raises UserError."""
    import wandb  # 1 s

    try:
        if wandb.setup().settings.mode in NEEDS_NO_KEY or wandb.login(prompt=False, verify=False):
            return
        reason = "no API key is configured"
    except wandb.Error as error:
        reason = str(error).partition("\n")[0].rstrip(".")
    raise UserError(
        f"log=wandb: {reason}; must be logged in (`wandb login`, or WANDB_API_KEY), or "
        "WANDB_MODE=offline"
    )


def check_package(choice: str, module: str) -> None:
    """Check that an optional package, that of a module, is installed. Raises UserError."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # not even what it is in
        found = None
    if found is None:
        package = module.rpartition(".")[2].replace("_", "-")
        raise UserError(f"{choice}: its package is missing; pip install {package}")
