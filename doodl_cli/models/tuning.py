"""What makes a model's networks fast, or small, on a GPU. They compute the same otherwise."""

import math
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import ResnetBlock2D

from doodl_cli.models.decoder import recompute
from doodl_cli.models.fused import can_fuse, fuse_layers
from doodl_cli.models.latent_model import HALVES, MEDIUM_PICTURE, LatentModel

MOST_SHAPES = 128  # at which one kind of block may be compiled


def tune(model: LatentModel, unet_checkpointing: bool, compiled: bool) -> None:
    """Lay out a model's networks for its device, and change its UNet as asked.

    `compiled` rounds otherwise than not compiled, and otherwise with a gradient than without:
    CUDA graphs, which replay one and the same for both, keep the sampler invertible.
    """
    if model.device.type == "cpu":
        for network in (model.unet, model.vae):
            network.to(memory_format=torch.channels_last)
    if model.device.type == "cuda":
        lay_out(model, compiled)
    if unet_checkpointing:
        model.unet.enable_gradient_checkpointing(recompute)
    if compiled:
        torch._dynamo.config.recompile_limit = MOST_SHAPES
        for module in model.unet.modules():
            if isinstance(module, BasicTransformerBlock | ResnetBlock2D):
                module.compile(dynamic=False)


def lay_out(model: LatentModel, compiled: bool) -> None:
    """Have layers see channels last, and fuse them; a compiler fuses the UNet's itself.

    A decoder whose products are not rounded stays as it is.
    """
    model.unet.to(memory_format=torch.channels_last)
    if not can_fuse(model.device, model.unet.dtype):
        return
    if not compiled:
        fuse_layers(model.unet)
    if model.vae.dtype in HALVES or rounds_convolutions():
        model.vae.decoder.to(memory_format=torch.channels_last)
        fuse_layers(model.vae.decoder)
        if math.prod(model.picture_size) <= MEDIUM_PICTURE:
            attend_plainly(model.vae.decoder)


def rounds_convolutions() -> bool:
    """Tell whether cuDNN rounds float32's products to TF32."""
    conv = getattr(torch.backends.cudnn, "conv", None)  # since PyTorch 2.9, where the old flag
    if conv is None:  # cannot be read any more once a caller has set the new one
        return torch.backends.cudnn.allow_tf32
    return conv.fp32_precision == "tf32"


def attend_plainly(decoder: Any) -> None:
    """Have a decoder keep its attention's probabilities.

    Heads of 512 channels are too large for the fast kernels, and what is left is slower than two
    products and a softmax; the probabilities of 4,096 positions fit.
    """
    for attention in decoder.mid_block.attentions:
        if attention is not None:
            attention.set_processor(AttnProcessor())
