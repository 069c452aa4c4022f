"""A picture of the user's, whatever program wrote it, as the model takes it.

Reading says what a file is, never how it is shown: a photo lies on its side until its EXIF
orientation is applied, a drawing may be transparent, a scan has 16 bits. All of them become RGB.
"""

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from doodl_cli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 100_000_000
ALLOWED = "must be a PNG, JPEG or WebP picture"


def read_picture(path: str, key: str) -> Image.Image:
    """Return a picture in RGB, upright, over white where it is transparent.

    `key` is what the user gave the path by. Raises UserError for a file that is missing, cannot be
    read, is no whole picture, moves, or is too large.
    """
    file = Path(path).expanduser()
    try:
        if not file.is_file():  # a folder; a pipe, which would never end
            what = "not a file" if file.exists() else "no such file"
            raise UserError(f"{key}={path}: {what}; {ALLOWED}")
        if file.stat().st_size == 0:
            raise UserError(f"{key}={path}: is empty; {ALLOWED}")
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:
            check_picture(image, f"{key}={path}")
            image.load()
            return flatten(turn_upright(image))
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise too_large(f"{key}={path}") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{key}={path}: not understood; {ALLOWED}") from error
    except Exception as error:  # what Pillow raises on damaged files has no common class
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{key}={path}: cannot be read ({reason}); {ALLOWED}") from error


def check_picture(image: Image.Image, given: str) -> None:
    """Check what a file's header says, before its pixels are decoded. Raises UserError."""
    if image.width * image.height > MOST_PIXELS:
        raise too_large(given)
    # A camera's MPO is a JPEG with a second view or a preview behind it: no animation.
    n_frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if n_frames > 1:
        raise UserError(f"{given}: has {n_frames} frames; must be one picture, not an animation")


def too_large(given: str) -> UserError:
    return UserError(f"{given}: too large; must be at most {MOST_PIXELS // 10**6} million pixels")


def turn_upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; one that makes no sense is left alone."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # EXIF is written by anything: the picture itself is whole
        return image


def flatten(image: Image.Image) -> Image.Image:
    """Return a picture of any mode in RGB: 16 bits scaled to 8, alpha over white."""
    if image.mode.startswith("I"):
        return flatten_16_bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def flatten_16_bit(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey picture in RGB. Pillow's own conversion cuts at 255."""
    grey = np.asarray(image).astype(np.uint32)
    grey_8_bit = ((grey * 255 + 32767) // 65535).astype(np.uint8)
    grey_8_bit[grey == image.info.get("transparency")] = 255
    return Image.fromarray(grey_8_bit).convert("RGB")


def fit_picture(picture: Image.Image, size: tuple[int, int]) -> "Tensor":
    """Return a picture as (3, h, w) in [-1, 1]: its centre in the aspect of `size`, (h, w)."""
    height, width = size
    return from_image(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))


def from_image(picture: Image.Image) -> "Tensor":
    """Return an RGB picture as (3, h, w), float32 in [-1, 1]."""
    import torch  # seconds, and a picture is read before them

    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return pixels.float() / 127.5 - 1


def psnr(first: "Tensor", second: "Tensor") -> float:
    """Return the peak signal-to-noise ratio of two 8-bit pictures (3, h, w) in dB.

    10 log10(255^2 / mean squared difference); infinite for equal pictures.
    """
    error = (first.double() - second.double()).square().mean().item()
    return 10 * math.log10(255**2 / error) if error else math.inf
