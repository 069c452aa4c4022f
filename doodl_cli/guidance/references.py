"""The reference pictures that the user names: paths and patterns to squares of pixels."""

import glob
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from doodl_cli.errors import UserError

KEY = "guidance.clip_image.images"


def find_references(images: str | list[str]) -> list[Path]:
    """Return the absolute paths that paths and patterns name, in order, none twice.

    A path that exists is no pattern, whatever characters it has. Raises UserError for one that
    names nothing.
    """
    paths: dict[Path, None] = {}
    for given in [images] if isinstance(images, str) else images:
        path = Path(given).expanduser()
        found = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path)))]
        if not found:
            raise UserError(
                f"{KEY}={given}: no such file; must be a picture, or a pattern of pictures"
            )
        paths.update(dict.fromkeys(p.absolute() for p in found))
    return list(paths)


def read_reference(path: Path) -> Tensor:
    """Return the middle square of a picture, (3, side, side) in [-1, 1]: what CLIP looks at.

    Raises UserError for a file that is not a picture.
    """
    picture = read_picture(path, KEY)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    pixels = np.asarray(picture.crop((left, top, left + side, top + side)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def read_picture(path: Path, key: str) -> Image.Image:
    """Return a picture in RGB. Raises UserError for a file that is not one."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except Exception as error:  # what Pillow raises on damaged files has no common class
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{key}={path}: cannot be read ({reason}); must be a picture") from error
