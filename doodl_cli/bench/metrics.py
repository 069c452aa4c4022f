"""What is measured on sets of pictures and on pairs of them, beside the scores of each."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

AT_A_TIME = 64


@torch.no_grad()
def in_batches(
    function: Callable[[Tensor], Tensor], pictures: Sequence[Tensor], device: torch.device
) -> Tensor:
    """Return what a function makes of one or more pictures (3, h, w) of one size, put together."""
    batches = (pictures[k : k + AT_A_TIME] for k in range(0, len(pictures), AT_A_TIME))
    return torch.cat([function(torch.stack(list(batch)).to(device)) for batch in batches])


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return the Frechet distance of the Gaussians fitted to two sets of embeddings (n, d), (m, d).

        |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))

    With C = X^T X of centred and scaled rows, tr (C_1 C_2)^(1/2) is the sum of the singular values
    of X_1 X_2^T, so that fewer pictures than dimensions are no numerical trouble. With few pictures
    the distance is biased upwards: compare only sets of one size with the same real pictures.

    Source: Heusel et al. 2017, arXiv 1706.08500, equation 6, there with Inception's embeddings.
    """
    X_1, X_2 = centre(first), centre(second)
    shift = ((first.mean(0) - second.mean(0)) ** 2).sum()
    # X = Q R, and Q changes no singular value.
    R_1, R_2 = np.linalg.qr(X_1)[1], np.linalg.qr(X_2)[1]
    cross = np.linalg.norm(R_1 @ R_2.T, "nuc")
    return float(shift + (X_1**2).sum() + (X_2**2).sum() - 2 * cross)


def centre(x: np.ndarray) -> np.ndarray:
    """Return embeddings (n, d) as X, whose X^T X is their covariance."""
    x = x.astype(float)
    return (x - x.mean(0)) / np.sqrt(max(len(x) - 1, 1))


def mean_distance(embeddings: Sequence[np.ndarray]) -> float:
    """Return the mean cosine distance between any two of some unit embeddings (d,); NaN for one."""
    pairs = itertools.combinations(embeddings, 2)
    distances = [1 - float(a @ b) for a, b in pairs]
    return sum(distances) / len(distances) if distances else float("nan")


def rms_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Return the root mean square difference of two 8-bit pictures, from 0 to 1."""
    return float(np.sqrt(np.mean((first.astype(float) - second.astype(float)) ** 2)) / 255)
