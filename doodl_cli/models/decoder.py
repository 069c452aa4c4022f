"""Decoding large pictures in little memory: what the gradient needs is computed again part by part.

At 512 px the graph of Stable Diffusion's decoder holds more than all of its UNet's weights. Here
one sample is decoded at a time, and of each only the inputs of the decoder's residual blocks are
kept, or one for all in the memory of a CUDA graph. The pictures are `vae.decode`'s, bit for bit.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from doodl_cli.models.capture import Captures
from doodl_cli.models.recompute import recompute


def decode_sparingly(vae: Any, z: Tensor, captures: Captures | None = None) -> Tensor:
    """Return the pictures (b, 3, h, w) of latents (b, c, h, w), as `vae.decode` does.

    With `captures` they are replayed from a CUDA graph.
    """
    decode = partial(decode_one, vae)
    if captures is not None:
        decode = partial(captures, "decode", decode)
    return torch.cat([decode(one) for one in z.split(1)])


def decode_one(vae: Any, z: Tensor) -> Tensor:
    """Return the picture of one sample's latents, its channels first, as pooling likes them."""
    for part in parts(vae):
        z = recompute(part, z)
    return z.contiguous()


def parts(vae: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield what an AutoencoderKL's decoder applies, one after another."""
    decoder = vae.decoder
    if vae.post_quant_conv is not None:
        yield vae.post_quant_conv
    yield decoder.conv_in
    yield decoder.mid_block
    for block in decoder.up_blocks:
        yield from (partial(resnet, temb=None) for resnet in block.resnets)
        yield from block.upsamplers or ()
    yield nn.Sequential(decoder.conv_norm_out, decoder.conv_act, decoder.conv_out)
