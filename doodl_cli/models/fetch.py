"""Weights that are fetched once and found without the network from then on."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from doodl_cli.errors import UserError
from doodl_cli.models.locate import hash_file

WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
LONGEST = 200
T = TypeVar("T")


def fetch_url(url: str, given: str) -> Path:
    """Return the file of a URL, from torch.hub's cache or brought there. Raises UserError."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2].replace("%2B", "+")
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:  # urllib's errors are of this kind
            raise UserError(
                f"{given}: {path} is missing and cannot be fetched ({explain(error)}); must be a "
                f"file here, or put {url} there"
            ) from error
    return path


def fetch_from_hub(repository: str, file: str, given: str) -> Path:
    """Return a file of the Hugging Face hub, from its cache or brought there. Raises UserError."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            cache_first(lambda offline: hf_hub_download(repository, file, local_files_only=offline))
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{given}: {file} of {repository} is not in the Hugging Face cache and cannot be "
            f"fetched ({explain(error)}); must be a file here, or null where there is a network"
        ) from error


def cache_first(load: Callable[[bool], T]) -> T:
    """Return load(True), which keeps off the network, or load(False) where that raises OSError."""
    try:
        return load(True)
    except OSError:
        return load(False)


def hash_weights(where: str) -> str | None:
    """Return the sha256 of a file, of a folder's weights, or of those of a cached repository."""
    from huggingface_hub import try_to_load_from_cache

    path = Path(where)
    files = [path, *(path / name for name in WEIGHTS)]
    if not path.exists() and where.count("/") == 1:
        files = [Path(str(try_to_load_from_cache(where, name))) for name in WEIGHTS]
    return next((hash_file(file) for file in files if file.is_file()), None)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries from logging what is about to be raised anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def explain(error: BaseException) -> str:
    """Return the first line of an error's message, or two if it announces one; cut where long."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:LONGEST].rstrip(".")
