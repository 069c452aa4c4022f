"""What a picture can be scored by: functions of pictures (b, 3, h, w) in [-1, 1], one value each.

Higher is better everywhere.
"""

import torch
from torch import Tensor


def colourfulness(images: Tensor) -> Tensor:
    """Return Hasler and Suesstrunk's colourfulness (2003, eq. 1 of M3), in units of 8-bit values.

    With rg = R - G and yb = (R + G) / 2 - B: the root of the summed variances of both plus 0.3
    times the length of their means. About 0 for grey, 15 slightly, 45 quite, 110 and more extremely
    colourful.
    """
    R, G, B = ((images.float() + 1) * 127.5).unbind(1)
    opponents = torch.stack([R - G, (R + G) / 2 - B], dim=1).flatten(2)
    variance = opponents.var(2, unbiased=False).sum(1)
    mean = opponents.mean(2).square().sum(1)
    # The small term keeps the root's slope finite for a picture of one grey.
    return (variance + 1e-6).sqrt() + 0.3 * (mean + 1e-6).sqrt()


def symmetry(images: Tensor) -> Tensor:
    """Return minus the mean squared difference to the mirror image (left to right)."""
    return -(images - images.flip(-1)).square().flatten(1).mean(1)
