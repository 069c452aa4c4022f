"""Layers of diffusers' networks without the copies and passes that PyTorch makes of them.

Convolutions are fastest channels last, but PyTorch's GroupNorm copies such tensors to channels
first, reduces a group in one block, and leaves SiLU to a kernel of its own; a transformer's output
is copied to channels first, too; GEGLU takes six passes with its gradient, and every bias of a
convolution one. `fuse_layers` changes the class of a network's layers in place: parameters and
names stay, and where the kernels do not apply (off a GPU, weights that learn) PyTorch's are used.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import silu

ACTIVATED = (  # modules, an activation of theirs, and the norms that it always follows
    (ResnetBlock2D, "nonlinearity", ("norm1", "norm2")),
    (UNet2DConditionModel | Decoder, "conv_act", ("conv_norm_out",)),
)


class FastGroupNorm(nn.GroupNorm):
    """GroupNorm by the kernels where they apply."""

    activated = False

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and not self.weight.requires_grad:
            from doodl_cli.models.norm_kernels import group_norm  # Triton is not everywhere

            return group_norm(x, self.weight, self.bias, self.num_groups, self.eps, self.activated)
        y = super().forward(x)
        return silu(y) if self.activated else y


class NormSiLU(FastGroupNorm):
    """SiLU of GroupNorm."""

    activated = True


class EmbeddingSiLU(nn.SiLU):
    """SiLU, but of feature maps (n, c, h, w), which come activated from their norms.

    A residual block has one activation for its norms' outputs and for the time embedding (n, d).
    """

    def forward(self, x: Tensor) -> Tensor:
        return x if x.ndim == 4 else super().forward(x)


class FastGEGLU(GEGLU):
    """GEGLU by the kernels where they apply."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if hidden_states.is_cuda:
            from doodl_cli.models.geglu_kernels import geglu

            return geglu(self.proj(hidden_states))
        return super().forward(hidden_states, *args, **kwargs)


class FastResnetBlock2D(ResnetBlock2D):
    """A residual block that adds the bias of its first convolution with the time embedding."""

    def forward(
        self, input_tensor: Tensor, temb: Tensor | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        if temb is None or not self.has_bias_to_move():
            return super().forward(input_tensor, temb, *args, **kwargs)  # type: ignore[arg-type]
        x = F.conv2d(self.norm1(input_tensor), self.conv1.weight, padding=self.conv1.padding)
        shift = self.time_emb_proj(self.nonlinearity(temb)) + self.conv1.bias
        x = self.conv2(self.norm2(x + shift[:, :, None, None]))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return (input_tensor + x) / self.output_scale_factor

    def has_bias_to_move(self) -> bool:
        """Tell whether the block is Stable Diffusion's: it resamples nothing, and has no LoRA."""
        rare = self.up or self.down or self.skip_time_act or self.time_emb_proj is None
        return not rare and type(self.conv1) is nn.Conv2d and isinstance(self.norm2, NormSiLU)


class ChannelsLastTransformer2D(Transformer2DModel):
    """A transformer over positions whose input and output stay channels last.

    Its 1 x 1 convolutions are matrix products of rows, which add the bias as they go.
    """

    def _operate_on_continuous_inputs(self, hidden_states: Tensor) -> tuple[Tensor, int]:
        _, _, height, width = hidden_states.shape
        rows = self.norm(hidden_states).movedim(1, -1).flatten(1, 2)
        rows = self.project(self.proj_in, rows, height, width)
        return rows, rows.shape[-1]

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Tensor,
        residual: Tensor,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> Tensor:
        rows = self.project(self.proj_out, hidden_states, height, width)
        return rows.unflatten(1, (height, width)).movedim(-1, 1) + residual

    def project(self, layer: nn.Module, rows: Tensor, height: int, width: int) -> Tensor:
        """Return rows (n, h w, d) of a layer's output for rows (n, h w, c)."""
        if type(layer) is nn.Conv2d:
            return F.linear(rows, layer.weight.flatten(1), layer.bias)
        if self.use_linear_projection:
            return layer(rows)
        picture = rows.unflatten(1, (height, width)).movedim(-1, 1)  # LoRA's
        return layer(picture).movedim(1, -1).flatten(1, 2)


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether the kernels run on a device, and say on stderr why not.

    Triton is not on every system; it needs a C compiler, Python's headers and a GPU that it knows.
    What is compiled here, once a machine, is what networks of a dtype need.
    """
    try:
        from doodl_cli.models.geglu_kernels import geglu
        from doodl_cli.models.norm_kernels import group_norm

        x = torch.arange(64.0 * 16, device=device).sin().view(1, 64, 16)
        weight = torch.ones(64, device=device)

        def by_kernels(x: Tensor) -> Tensor:
            x, own = x.to(dtype), weight.to(dtype)
            return geglu(group_norm(x, own, own, n_groups=32, eps=1e-5, silu=True).mT).float()

        def by_pytorch(x: Tensor) -> Tensor:
            value, gate = silu(F.group_norm(x, 32, weight, weight, 1e-5)).mT.chunk(2, -1)
            return value * F.gelu(gate)

        with torch.enable_grad():
            for one, other in zip(both(by_kernels, x), both(by_pytorch, x), strict=True):
                torch.testing.assert_close(one, other, rtol=0.03, atol=0.03)
    except Exception as error:  # what Triton raises has no common class
        reason = str(error).strip().partition("\n")[0]
        print(f"device={device}: slower layers, without Triton: {reason}", file=sys.stderr)
        return False
    return True


def both(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a function's value and the gradient of its sum."""
    x = x.clone().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


def fuse_layers(network: nn.Module) -> None:
    """Have a network's norms and GEGLUs computed by the kernels, with SiLU where it follows norms.

    A second call changes nothing.
    """
    for module in network.modules():
        for cls, activation, names in ACTIVATED:
            if isinstance(module, cls):
                fuse(module, getattr(module, activation), [getattr(module, n) for n in names])
    for module in network.modules():
        if is_plain(module):
            module.__class__ = FastGroupNorm
        elif type(module) in REPLACED:
            module.__class__ = REPLACED[type(module)]


REPLACED: Mapping[type[nn.Module], type[nn.Module]] = {
    GEGLU: FastGEGLU,
    ResnetBlock2D: FastResnetBlock2D,
    Transformer2DModel: ChannelsLastTransformer2D,
}


def fuse(module: nn.Module, activation: nn.Module | None, norms: list[nn.Module | None]) -> None:
    """Move a module's activation into the norms before it, where it is SiLU right after them."""
    between = getattr(module, "time_embedding_norm", None) == "scale_shift"
    if type(activation) is nn.SiLU and all(map(is_plain, norms)) and not between:
        activation.__class__ = EmbeddingSiLU
        for norm in norms:
            norm.__class__ = NormSiLU


def is_plain(module: nn.Module | None) -> bool:
    """Tell whether a module is a GroupNorm with weights, and nothing more."""
    return type(module) is nn.GroupNorm and module.affine
