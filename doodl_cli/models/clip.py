"""A CLIP pair: pictures and texts to unit vectors of one space (Radford et al. 2021)."""

import difflib
import os
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from doodl_cli.errors import UserError
from doodl_cli.models.capture import Captures
from doodl_cli.models.fetch import explain, hash_weights, quiet
from doodl_cli.models.half import in_half
from doodl_cli.models.recompute import recompute

LARGE_NETWORK = 50_000_000  # parameters, from which a GPU computes in half precision


class Clip(nn.Module):
    """An open_clip model with its tokenizer and normalisation, differentiable in the picture.

    The model is frozen, in place. `facts` says where its weights come from.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, tokenizer: Any, facts: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        join_products(model.visual)
        self.tokenizer = tokenizer
        self.facts = facts
        self.image_dtype = torch.float32
        self.captured, self.captures = False, Captures()
        size = model.visual.image_size
        self.image_size: int = size[0] if isinstance(size, tuple | list) else size
        self.register_buffer("mean", torch.tensor(model.visual.image_mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.visual.image_std).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def embed_images(self, images: Tensor) -> Tensor:
        """Return unit vectors (b, d) for pictures (b, 3, h, w) in [-1, 1], resized as needed."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            images = resize(images, self.image_size)
        pixels = ((images.to(self.mean.dtype) + 1) / 2 - self.mean) / self.std
        if self.image_dtype == torch.float32:
            return F.normalize(self.model.visual(pixels), dim=-1)
        return F.normalize(in_half(self.see, pixels, self.image_dtype), dim=-1)

    def see(self, pixels: Tensor) -> Tensor:
        """Return embeddings of normalised pictures; gradients are replayed from CUDA graphs."""
        if self.captured and torch.is_grad_enabled() and pixels.requires_grad:
            return self.captures("visual", self.model.visual, pixels)
        return self.model.visual(pixels)

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Return unit vectors (n, d), one a text."""
        tokens = self.tokenizer(texts).to(self.model.logit_scale.device)
        return self.model.encode_text(tokens, normalize=True).to(self.mean.device)

    def spare(self) -> None:
        """Compute pictures in half precision, twice for the gradient, and texts on the CPU.

        There are a few texts in a run, and thousands of pictures. A transformer's blocks do without
        the random numbers' state, which open_clip's checkpoints keep and CUDA graphs forbid.
        """
        from open_clip.transformer import VisionTransformer

        device, visual = self.mean.device, self.model.visual
        self.model.to("cpu")
        visual.to(device, torch.float16)
        self.image_dtype = torch.float16
        if not isinstance(visual, VisionTransformer):
            self.model.set_grad_checkpointing()
            return
        for block in visual.transformer.resblocks:
            block.forward = partial(recompute, block.forward)
        self.captured = device.type == "cuda"


def resize(images: Tensor, size: int) -> Tensor:
    """Return pictures (b, 3, h, w) as (b, 3, size, size): bicubic, antialiased.

    `interpolate` does the same, but its gradient on a GPU adds up in another order each time. It is
    linear along each side, so it is two products, in float64 where there is one.
    """
    exact = torch.float32 if images.device.type == "mps" else torch.float64
    rows, columns = (bicubic(n, size, images.device, exact) for n in images.shape[-2:])
    return torch.einsum("ih,bchw,jw->bcij", rows, images.to(exact), columns).to(images.dtype)


@cache
def bicubic(length: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the matrix (size, length) that resizes a side."""
    every = torch.eye(length, dtype=torch.float64)[None, None]
    matrix = F.interpolate(every, (size, length), mode="bicubic", antialias=True)[0, 0]
    return matrix.to(device, dtype)


class SelfAttention(nn.MultiheadAttention):
    """Attention of tokens (b, n, d) to each other, of one contiguous product for its inputs.

    PyTorch's moves the batch behind the tokens, and its product then is one for each token.
    """

    def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=kwargs.get("attn_mask"))
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


def join_products(visual: nn.Module) -> None:
    """Have the blocks of open_clip's transformers attend by `SelfAttention`, in place."""
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, VisionTransformer):
        for block in visual.transformer.resblocks:
            if type(getattr(block, "attn", None)) is nn.MultiheadAttention:
                block.attn.__class__ = SelfAttention


def fold_norms(visual: nn.Module) -> None:
    """Fold the batch norms of open_clip's ResNets into the convolutions before them, in place.

    In float32 what they compute stays the same but for rounding; in half precision folded weights
    are less exact than norms of their own.
    """
    from open_clip.modified_resnet import ModifiedResNet

    if not isinstance(visual, ModifiedResNet):  # whose layers are in the order that they are run in
        return
    for block in [*visual.modules()]:
        for (name, layer), (next_name, norm) in pairwise(block.named_children()):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(block, name, fuse_conv_bn_eval(layer, norm))
                setattr(block, next_name, nn.Identity())


def load_clip(name: str, pretrained: str | None, device: torch.device, given: str) -> Clip:
    """Load a CLIP, frozen, in float32; a large one sees in half precision on a GPU.

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
    clip = Clip(model, tokenizer, facts).to(device)
    if device.type == "cuda" and sum(p.numel() for p in clip.parameters()) > LARGE_NETWORK:
        clip.spare()
    else:
        fold_norms(clip.model.visual)
    return clip


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
    if not pretrained or (pretrained not in tags and not os.path.isfile(pretrained)):
        allowed = f"{', '.join(tags)} or a file" if tags else "a file"
        raise UserError(f"{given}: no such weights; pretrained must be {allowed}")


def find_weights(name: str, pretrained: str | None) -> str:
    """Return the file, the folder or the repository that a CLIP's weights come from."""
    from open_clip import download_pretrained, get_pretrained_cfg

    if pretrained and not Path(pretrained).is_file():  # a tag, whose file is in a cache by now
        return download_pretrained(get_pretrained_cfg(name, pretrained))
    return pretrained or name.partition(":")[2]
