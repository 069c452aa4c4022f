"""Where a model's weights are, and whether their files are whole. Imports no torch."""

import hashlib
import json
from pathlib import Path

from doodl_cli.errors import UserError

ASSETS = Path(__file__).parents[1] / "assets"

PIPELINE_FILES = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
)
SCORER_FILES = (
    "clip_a/open_clip_model.safetensors",
    "clip_b/open_clip_model.safetensors",
    "clip_c/open_clip_model.safetensors",
    "aesthetic/head.safetensors",
)
NOISE_AWARE = "noise_aware"  # the folder of the classifier of noisy latents
NOISE_AWARE_FILES = ("config.json", "model.safetensors")


def find_folder(name: str, path: str | None) -> Path:
    """Return the folder of a model: `path`, or the embedded one of that name."""
    return Path(path).expanduser() if path else ASSETS / name


def find_weights(name: str, path: str | None) -> tuple[bool, str]:
    """Tell whether a model's weights are all here, and a line that says where or what is wrong."""
    folder = find_folder(name, path)
    try:
        check_files(folder, (*PIPELINE_FILES, *SCORER_FILES))
    except UserError as error:
        return False, str(error)
    size = sum((folder / file).stat().st_size for file in (*PIPELINE_FILES, *SCORER_FILES))
    return True, f"{folder} ({size / 1e6:.0f} MB)"


def find_noise_aware(folder: Path, path: str | None) -> tuple[Path, Path]:
    """Return where settings and weights of a classifier of noisy latents are, or should be.

    `folder` is the model's; `path` names another than the model's own classifier.
    """
    own = Path(path).expanduser() if path else folder / NOISE_AWARE
    return own / NOISE_AWARE_FILES[0], own / NOISE_AWARE_FILES[1]


def check_files(folder: Path, files: tuple[str, ...]) -> None:
    """Check that each safetensors file is there and as long as its header says.

    Raises UserError that names the file.
    """
    for file in files:
        path = folder / file
        if not path.is_file():
            raise UserError(
                f"model.path={folder}: {file} is missing; must be a diffusers pipeline folder "
                "with its scorers beside it"
            )
        check_whole(path, f"model.path={folder}: {file}")


def check_whole(path: Path, given: str) -> None:
    """Check that a safetensors file is as long as its header says. Raises UserError."""
    try:
        whole = expected_size(path) == path.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{given} is truncated or damaged; must be a whole safetensors file")


def expected_size(path: Path) -> int:
    """Return how long a safetensors file must be by its own header."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("the header is longer than the file")
        header = json.loads(stream.read(length))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)


def hash_file(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
