"""A CLIP pair: pictures and texts to unit vectors of one space (Radford et al. 2021)."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Clip(nn.Module):
    """An open_clip model with its tokenizer and normalisation, differentiable in the picture."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        size = model.visual.image_size
        self.image_size: int = size[0] if isinstance(size, tuple | list) else size
        self.register_buffer("mean", torch.tensor(model.visual.image_mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.visual.image_std).view(1, 3, 1, 1))

    def embed_images(self, images: Tensor) -> Tensor:
        """Return unit vectors (b, d) for pictures (b, 3, h, w) in [-1, 1], resized as needed."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = F.interpolate(
                images, (self.image_size, self.image_size), mode="bicubic", antialias=True
            )
        images = (images.to(self.mean.dtype) + 1) / 2
        return self.model.encode_image((images - self.mean) / self.std, normalize=True)

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Return unit vectors (n, d), one a text."""
        tokens = self.tokenizer(texts).to(self.mean.device)
        return self.model.encode_text(tokens, normalize=True)


def load_clip(folder: Path, device: torch.device) -> Clip:
    """Load an open_clip folder (`local-dir:`), frozen, in float32."""
    import open_clip

    name = f"local-dir:{folder}"
    model = open_clip.create_model(name, precision="fp32", device=device)
    clip = Clip(model, open_clip.get_tokenizer(name)).to(device)
    return clip.eval().requires_grad_(False)
