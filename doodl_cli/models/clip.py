"""A CLIP pair: pictures and texts to unit vectors of one space (Radford et al. 2021)."""

import difflib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from doodl_cli.errors import UserError
from doodl_cli.models.fetch import explain, hash_weights, quiet


class Clip(nn.Module):
    """An open_clip model with its tokenizer and normalisation, differentiable in the picture.

    `facts` says where its weights come from.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, tokenizer: Any, facts: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.facts = facts
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


def load_clip(name: str, pretrained: str | None, device: torch.device, given: str) -> Clip:
    """Load a CLIP, frozen, in float32.

    `name` and `pretrained` are open_clip's: `local-dir:FOLDER` or `hf-hub:NAME`, which bring their
    weights, or a model's name with the tag or the file of its weights. What has to come from the
    network comes once. Raises UserError, with the key and value that it was `given` by.
    """
    import open_clip

    check_name(name, pretrained, given)
    try:
        with quiet():
            model = open_clip.create_model(
                name, pretrained, precision="fp32", device=device, require_pretrained=True
            )
            tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # what it raises on damaged files has no common class
        raise UserError(
            f"{given}: cannot be loaded: {explain(error)}; must be weights that are here or can be "
            "fetched"
        ) from error
    sha256 = hash_weights(find_weights(name, pretrained))
    facts = {"name": name, "pretrained": pretrained, "sha256": sha256}
    return Clip(model, tokenizer, facts).to(device).eval().requires_grad_(False)


def check_name(name: str, pretrained: str | None, given: str) -> None:
    """Check that open_clip knows a model and its weights. Raises UserError."""
    import open_clip

    if name.startswith(("local-dir:", "hf-hub:")):
        if pretrained:
            raise UserError(f"{given}: brings its own weights; pretrained must be null")
        return
    names = open_clip.list_models()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UserError(
            f"{given}: unknown; must be a model of open_clip, local-dir:FOLDER or hf-hub:NAME{hint}"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not pretrained or (pretrained not in tags and not Path(pretrained).is_file()):
        allowed = f"{', '.join(tags)} or a file" if tags else "a file"
        raise UserError(f"{given}: no such weights; pretrained must be {allowed}")


def find_weights(name: str, pretrained: str | None) -> str:
    """Return the file, the folder or the repository that a CLIP's weights come from."""
    from open_clip import download_pretrained, get_pretrained_cfg

    if pretrained and not Path(pretrained).is_file():  # a tag, whose file is in a cache by now
        return download_pretrained(get_pretrained_cfg(name, pretrained))
    return pretrained or name.partition(":")[2]
