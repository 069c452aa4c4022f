"""Pictures that teach a scorer to see what is drawn rather than how cleanly.

A scorer that is optimised finds what raises its own value only. Trained on pictures with
distortions that its gradient would use, it passes gradients that improve the picture for others.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor


def load_vae(path, device: str) -> AutoencoderKL:
    """Return the auto-encoder that `smear` takes."""
    vae = AutoencoderKL.from_pretrained(path).to(device).eval()
    if device == "cpu":
        return vae
    return vae.to(torch.bfloat16, memory_format=torch.channels_last)


@torch.no_grad()
def smear(vae: AutoencoderKL, picture: Tensor, share: float, noise: float = 0.5) -> Tensor:
    """Decode a share of the pictures in [0, 1] from latents with noise of random strength."""
    if not share:
        return picture
    n = round(share * len(picture))
    chosen = torch.randperm(len(picture), device=picture.device)[:n]
    z = vae.encoder(2 * picture[chosen].to(vae.dtype) - 1)[:, : vae.config.latent_channels]
    strength = noise * torch.rand(n, 1, 1, 1, device=z.device, dtype=z.dtype)
    z = z + strength * torch.randn_like(z) / vae.config.scaling_factor
    smeared = (vae.decoder(z).to(picture) / 2 + 0.5).clamp(0, 1)
    return picture.index_copy(0, chosen, smeared)


def warp(picture: Tensor, most: float, cells: int = 5) -> Tensor:
    """Bend pictures by a smooth random field of up to `most` pixels (standard deviation) each."""
    if not most:
        return picture
    b, _, h, w = picture.shape
    strength = most * torch.rand(b, 1, 1, 1, device=picture.device)
    field = strength * torch.randn(b, 2, cells, cells, device=picture.device)
    field = F.interpolate(field, (h, w), mode="bicubic", align_corners=True).movedim(1, 3)
    still = torch.eye(2, 3, device=picture.device).expand(b, 2, 3)
    grid = F.affine_grid(still, [b, 1, h, w], align_corners=False) + 2 * field / w
    return F.grid_sample(picture, grid, padding_mode="border", align_corners=False)


def restyle(picture: Tensor, share: float) -> Tensor:
    """Draw pictures in [0, 1] in another manner: flat tones, dark or no outlines, other contrasts.

    Each change happens to a `share` of the pictures.
    """
    if not share:
        return picture

    def some(changed: Tensor) -> Tensor:
        chosen = torch.rand(len(picture), 1, 1, 1, device=picture.device) < share
        return torch.where(chosen, changed, picture)

    levels = torch.randint(3, 7, (len(picture), 1, 1, 1), device=picture.device)
    picture = some((picture * levels).round() / levels)
    lightest = F.max_pool2d(picture, 3, 1, 1)
    picture = some(F.avg_pool2d(lightest, 3, 1, 1, count_include_pad=False))
    darkest = -F.max_pool2d(-picture, 3, 1, 1)
    picture = some(picture * (1 - (picture - darkest).amax(1, keepdim=True)))
    gamma = torch.exp2(1.6 * torch.rand(len(picture), 3, 1, 1, device=picture.device) - 0.8)
    return some(picture.clamp(0, 1) ** gamma.mean(1, keepdim=True).lerp(gamma, 0.3))


def norms(x: Tensor) -> Tensor:
    """Return the L2 norm of every picture (b, 1, 1, 1)."""
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


def attack(picture: Tensor, loss: Callable[[Tensor], Tensor], most: float) -> Tensor:
    """Move pictures in [0, 1] by up to `most` (L2) each, where that raises the loss fastest.

    One step from a random start: adversarial training (Madry et al. 2018) in its fast form (Wong
    et al. 2020). The radius is random, so that clean pictures stay among the examples.
    """
    if not most:
        return picture
    radius = most * torch.rand(len(picture), 1, 1, 1, device=picture.device)
    start = torch.randn_like(picture)
    start = (picture + 0.5 * radius * start / norms(start)).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(start), start)
    return (start + radius * gradient / norms(gradient).clamp_min(1e-20)).detach().clamp(0, 1)
