"""The reference pictures that the user names: paths and patterns to squares of pixels."""

import glob
import os
from pathlib import Path

from torch import Tensor

from doodl_cli.errors import UserError
from doodl_cli.pictures import from_image, read_picture

KEY = "guidance.clip_image.images"


def find_references(images: str | list[str] | None) -> list[Path]:
    """Return the absolute paths that paths and patterns name, in order, none twice; null none.

    A path that exists is no pattern, whatever characters it has. Raises UserError for one that
    names nothing.
    """
    paths: dict[Path, None] = {}
    for given in [images] if isinstance(images, str) else images or []:
        name = os.path.expanduser(given)
        found = [name] if os.path.exists(name) else sorted(glob.glob(name))
        if not found:
            raise UserError(
                f"{KEY}={given}: no such file; must be a picture, or a pattern of pictures"
            )
        paths.update(dict.fromkeys(Path(name).absolute() for name in found))
    return list(paths)


def read_reference(path: Path) -> Tensor:
    """Return the middle square of a picture, (3, side, side) in [-1, 1]: what CLIP looks at.

    Raises UserError for a file that is not a picture.
    """
    picture = read_picture(str(path), KEY)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return from_image(picture.crop((left, top, left + side, top + side)))
