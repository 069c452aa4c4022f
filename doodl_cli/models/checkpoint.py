"""The files of a diffusers checkpoint: a folder, or a repository of the Hugging Face hub.

The hub's cache is asked first, the network only for what is not there. Imports no torch.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from doodl_cli.errors import UserError
from doodl_cli.models.fetch import cache_first, explain
from doodl_cli.models.locate import check_whole, hash_file

ONE_ENCODER = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
}
FAMILIES = {
    "StableDiffusionPipeline": ONE_ENCODER,
    "StableDiffusionXLPipeline": {
        **ONE_ENCODER,
        "text_encoder_2": "CLIPTextModelWithProjection",
    },
}
SUPPORTED = (
    "Stable Diffusion 1 and 2, SDXL and their turbo models "
    f"({' or '.join(FAMILIES)} in model_index.json)"
)
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
BLOB = re.compile(r"[0-9a-f]{64}")


def find_checkpoint(path: str, variant: str | None) -> Path:
    """Return the folder of a checkpoint whose files are all there, fetched if need be.

    Raises UserError, for what cannot be fetched with the command that does it.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        check_parts(folder, variant, f"model.path={path}")
        return folder
    if not REPOSITORY.fullmatch(path):
        raise UserError(
            f"model.path={path}: no such folder; must be a diffusers folder or a name on the "
            "Hugging Face hub"
        )
    return fetch_checkpoint(path, variant)


def fetch_checkpoint(repository: str, variant: str | None) -> Path:
    """Return the hub's folder of a checkpoint: from the cache, else fetched, `.bin` files last."""
    given = f"model.path={repository}"
    for ending in ("safetensors", "bin"):
        load = partial(download, repository, variant, list_patterns(variant, ending))
        try:
            folder = cache_first(load)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{given}: not in the Hugging Face cache and cannot be fetched "
                f"({explain(error)}); fetch it with `{fetch_command(repository, variant)}`, or "
                "give its folder"
            ) from error
        if has_weights(folder, variant):
            break
    check_parts(folder, variant, given)
    return folder


def download(repository: str, variant: str | None, patterns: list[str], offline: bool) -> Path:
    """Return the hub's folder of a repository. Raises OSError for what the cache lacks."""
    from huggingface_hub import snapshot_download

    folder = snapshot_download(repository, allow_patterns=patterns, local_files_only=offline)
    if offline and not has_weights(Path(folder), variant):
        raise FileNotFoundError("only a part of it is in the cache")
    return Path(folder)


def find_cached(repository: str, variant: str | None) -> tuple[bool, str]:
    """Tell whether the hub's cache holds a checkpoint, and a line that says where or how to get it.

    Reads no weights and asks no network.
    """
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(repository, "model_index.json")
    if not isinstance(index, str) or not has_weights(Path(index).parent, variant):
        return False, fetch_command(repository, variant)
    return True, str(Path(index).parent)


def list_patterns(variant: str | None, ending: str) -> list[str]:
    """Return patterns of the files that are needed, which fetch no other variant's weights."""
    end = f".{variant}" if variant else ""
    text = {"safetensors": "model", "bin": "pytorch_model"}[ending]
    stems = [
        f"unet/diffusion_pytorch_model{end}",
        f"vae/diffusion_pytorch_model{end}",
        f"text_encoder*/{text}{end}",
    ]
    weights = [f"{stem}{part}.{ending}" for stem in stems for part in ("", "-*-of-*")]
    return ["model_index.json", "*/*.json", "*/*.txt", *weights]


def fetch_command(repository: str, variant: str | None) -> str:
    """Return the command that fetches a checkpoint into the cache."""
    patterns = [
        pattern for pattern in list_patterns(variant, "safetensors") if "-of-" not in pattern
    ]
    return " ".join(["hf", "download", repository, *(f"--include '{p}'" for p in patterns)])


def check_parts(folder: Path, variant: str | None, given: str) -> None:
    """Check that a folder holds a supported checkpoint and each network's weights, whole.

    Raises UserError that names the file.
    """
    try:
        index = read_index(folder)
        family = index["_class_name"]
    except FileNotFoundError as error:
        raise UserError(
            f"{given}: model_index.json is missing; must be a diffusers pipeline folder"
        ) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{given}: model_index.json is damaged; must be that of a diffusers pipeline"
        ) from error
    if family not in FAMILIES:
        raise UserError(f"{given}: a {family}; must be {SUPPORTED}")
    for part, expected in FAMILIES[family].items():
        found = (index.get(part) or [None])[-1]
        if found != expected:
            raise UserError(f"{given}: its {part} is {found}; must be {expected}")
        files = list_weights(folder / part, variant)
        if not files:
            others = sorted(list_variants(folder / part) - {variant or ""})
            hint = f"; there are those of model.variant={others[0] or 'null'}" if others else ""
            what = f"weights of model.variant={variant} are" if variant else "weights are"
            raise UserError(
                f"{given}: {part}: its {what} missing; must be safetensors or .bin files{hint}"
            )
        for file in files:
            if file.suffix == ".safetensors":
                check_whole(file, f"{given}: {file.relative_to(folder)}")


def read_family(folder: Path) -> dict[str, str]:
    """Return the networks of a checked folder with their classes."""
    return FAMILIES[read_index(folder)["_class_name"]]


def read_index(folder: Path) -> dict[str, Any]:
    """Return the content of model_index.json."""
    return json.loads((folder / "model_index.json").read_text(encoding="utf-8"))


def has_weights(folder: Path, variant: str | None) -> bool:
    """Whether each network of a supported checkpoint has weights, or it is not a supported one."""
    try:
        return all(list_weights(folder / part, variant) for part in read_family(folder))
    except FileNotFoundError:
        return False
    except (ValueError, KeyError):
        return True  # check_parts says why


def list_weights(folder: Path, variant: str | None) -> list[Path]:
    """Return the files of a network's weights: safetensors, in one file or several, else .bin."""
    end = f".{variant}" if variant else ""
    for ending in (".safetensors", "-*-of-*.safetensors", ".bin", "-*-of-*.bin"):
        files = [
            file
            for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
            for file in sorted(folder.glob(f"{stem}{end}{ending}"))
        ]
        if files:
            return files
    return []


def list_variants(folder: Path) -> set[str]:
    """Return the variants of a network's weights that there are, `""` for the plain ones."""
    names = [file.name for ending in ("safetensors", "bin") for file in folder.glob(f"*.{ending}")]
    return {name.split(".")[1] if name.count(".") > 1 else "" for name in names}


def hash_checkpoint(folder: Path, variant: str | None) -> dict[str, str]:
    """Return the sha256 of each file of weights; the hub's cache names files by it."""
    hashes = {}
    for part in read_family(folder):
        for file in list_weights(folder / part, variant):
            blob = file.resolve().name
            name = str(file.relative_to(folder))
            hashes[name] = blob if BLOB.fullmatch(blob) else hash_file(file)
    return hashes
