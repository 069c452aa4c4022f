"""What makes a model's networks fast, or small, on a GPU. They compute the same otherwise."""

import math
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from doodl_cli.models.fused import can_fuse, fuse_layers
from doodl_cli.models.latent_model import HALVES, LatentModel
from doodl_cli.models.recompute import recompute

MOST_SHAPES = 128  # at which one kind of block may be compiled
MOST_POSITIONS = 4096  # whose attention's probabilities are kept: 512 px


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
        attend_plainly(model.vae.decoder)


def rounds_convolutions() -> bool:
    """Tell whether cuDNN rounds float32's products to TF32."""
    conv = getattr(torch.backends.cudnn, "conv", None)  # since PyTorch 2.9, where the old flag
    if conv is None:  # cannot be read any more once a caller has set the new one
        return torch.backends.cudnn.allow_tf32
    return conv.fp32_precision == "tf32"


class KeptProbabilities:
    """Attention of a picture's positions (b, c, h, w) to each other that keeps its probabilities.

    Heads of 512 channels are too large for the fast kernels, and what is left is slower than two
    products and a softmax. Of many positions the probabilities do not fit: PyTorch's it is then.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,  # by this name diffusers asks who takes it
    ) -> Tensor:
        few = math.prod(hidden_states.shape[2:]) <= MOST_POSITIONS
        process = AttnProcessor() if few else AttnProcessor2_0()
        return process(attn, hidden_states, encoder_hidden_states, attention_mask, temb)


def attend_plainly(decoder: Any) -> None:
    """Have a decoder's attention keep its probabilities, where it is diffusers' own."""
    for attention in decoder.mid_block.attentions:
        if attention is not None and type(attention.processor) is AttnProcessor2_0:
            attention.set_processor(KeptProbabilities())
