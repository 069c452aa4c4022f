"""What makes a model's networks fast, or small, on a GPU. They compute the same otherwise."""

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D

from doodl_cli.models.decoder import recompute
from doodl_cli.models.latent_model import LatentModel

MOST_SHAPES = 128  # at which one kind of block may be compiled


def tune(model: LatentModel, unet_checkpointing: bool, compiled: bool) -> None:
    """Lay out a model's networks for its device, and change its UNet as asked.

    `compiled` rounds otherwise than not compiled, and otherwise with a gradient than without:
    CUDA graphs, which replay one and the same for both, keep the sampler invertible.
    """
    if model.device.type == "cuda":
        # Not the decoder, which is slower so: its norms copy what its convolutions do not.
        model.unet.to(memory_format=torch.channels_last)
    if unet_checkpointing:
        model.unet.enable_gradient_checkpointing(recompute)
    if compiled:
        torch._dynamo.config.recompile_limit = MOST_SHAPES
        for module in model.unet.modules():
            if isinstance(module, BasicTransformerBlock | ResnetBlock2D):
                module.compile(dynamic=False)
