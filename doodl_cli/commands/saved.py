"""What a configuration refers to on disk, checked before anything heavy is loaded."""

import sys
from dataclasses import replace
from pathlib import Path

import yaml

from doodl_cli.config import Config, ImageInit, LatentsInit, read_config, show
from doodl_cli.errors import UserError


def read_run(run: str, key: str) -> tuple[Config, list[Path]]:
    """Return the configuration of a run directory and the files of its latents, one a sample.

    `key` is what the user gave the run by. Raises UserError.
    """
    folder = Path(run).expanduser()
    try:
        values = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        config = read_config(values)
    except UserError as error:
        raise UserError(f"{key}={run}: config.yaml: {error}") from error
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(
            f"{key}={run}: must be a run directory (no readable config.yaml)"
        ) from error
    latents = [folder / f"samples/{i:03}/latents.safetensors" for i in range(len(config.seeds))]
    for path in latents:
        if not path.is_file():
            raise UserError(f"{key}={run}: must be a finished run ({path} is missing)")
    return config, latents


def check_start(config: Config) -> Config:
    """Check that what x_T starts from is there, and take a saved run's prompt where there is none.

    Raises UserError.
    """
    init = config.init
    if isinstance(init, ImageInit):
        from doodl_cli.pictures import read_picture  # 0.1 s, which --help need not take

        read_picture(str(init.path), "init.path")
    if not isinstance(init, LatentsInit):
        return config
    saved, latents = read_run(str(init.path), "init.path")
    if len(latents) not in (1, len(config.seeds)):
        raise UserError(
            f"seed={show(config.seed)}: init.path={init.path} holds {len(latents)} samples; "
            f"must be as many, as in seed={show(saved.seed)}"
        )
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
    return replace(config, prompt=saved.prompt) if config.prompt is None else config
