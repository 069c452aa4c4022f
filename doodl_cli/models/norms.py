"""Group norms of diffusers' networks without PyTorch's copies, fused with the SiLU after them.

Convolutions are fastest channels last, but PyTorch's GroupNorm copies such tensors to channels
first, reduces a group in one block, and leaves SiLU to a kernel of its own. `fuse_norms` changes
the class of a network's norms and activations in place: parameters, names and hooks stay, and
where the kernels do not apply (off a GPU, weights that learn) PyTorch computes as before.
"""

import sys

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
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


def can_fuse(device: torch.device) -> bool:
    """Tell whether the kernels run on a device, and say on stderr why not.

    Triton is not on every system; it needs a C compiler, Python's headers and a GPU that it knows.
    """
    try:
        from doodl_cli.models.norm_kernels import group_norm

        x = torch.arange(64.0 * 16, device=device).sin().view(1, 64, 16)
        weight = torch.ones(64, device=device)
        found = group_norm(x, weight, weight, n_groups=32, eps=1e-5, silu=True)
        expected = silu(F.group_norm(x, 32, weight, weight, 1e-5))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    except Exception as error:  # what Triton raises has no common class
        reason = str(error).strip().partition("\n")[0]
        print(f"device={device}: slower group norms, without Triton: {reason}", file=sys.stderr)
        return False
    return True


def fuse_norms(network: nn.Module) -> None:
    """Have a network's group norms computed by the kernels, with SiLU where it follows them.

    A second call changes nothing.
    """
    for module in network.modules():
        for cls, activation, names in ACTIVATED:
            if isinstance(module, cls):
                fuse(module, getattr(module, activation), [getattr(module, n) for n in names])
    for module in network.modules():
        if is_plain(module):
            module.__class__ = FastGroupNorm


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
