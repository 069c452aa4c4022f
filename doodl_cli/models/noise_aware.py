"""A classifier of noisy latents, p(y | x_t, t): what `method=noise_aware` is guided by.

The downward half of a denoiser with a linear head (Dhariwal and Nichol 2021, arXiv 2105.05233,
section 4.1), of diffusers' blocks. `scripts/embedded/train_noise_aware.py` trains it.
"""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from safetensors.torch import load_file
from torch import Tensor, nn

from doodl_cli.errors import UserError
from doodl_cli.models.locate import check_whole, find_noise_aware

if TYPE_CHECKING:
    from doodl_cli.models.latent_model import LatentModel


class NoisyClassifier(nn.Module):
    """`widths`: the channels of each block, of which each but the first halves the side."""

    def __init__(self, in_channels: int, widths: list[int], labels: list[str]) -> None:
        super().__init__()
        self.labels = labels
        self.in_channels = in_channels
        first, last = widths[0], widths[-1]
        self.waves = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embed_time = TimestepEmbedding(first, 4 * first)
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResnetBlock2D(in_channels=a, out_channels=b, temb_channels=4 * first, groups=16)
            for a, b in zip([first, *widths], widths, strict=False)
        )
        self.norm = nn.GroupNorm(16, last)
        self.head = nn.Linear(last, len(labels))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return logits (b, n_classes) of x_t (b, c, h, w) at timesteps (b,)."""
        time = self.embed_time(self.waves(t).to(x.dtype))
        x = self.conv_in(x)
        for k, block in enumerate(self.blocks):
            x = block(nn.functional.avg_pool2d(x, 2) if k else x, time)
        return self.head(nn.functional.silu(self.norm(x)).mean((2, 3)))

    def for_classes(
        self, find: Callable[[Sequence[str]], list[int]], weight: float
    ) -> Callable[[Tensor, int, Sequence[str]], Tensor]:
        """Return (x_t, t, prompts) -> weight log p(class | x_t, t), one value a sample (b,).

        `find` gives the number of each prompt's class.
        """

        def log_probability(x: Tensor, t: int, prompts: Sequence[str]) -> Tensor:
            logits = self(x.float(), torch.full((len(x),), t, device=x.device))
            numbers = torch.tensor(find(prompts), device=x.device)
            return weight * logits.log_softmax(1).gather(1, numbers[:, None])[:, 0]

        return log_probability


def load_noise_aware(model: "LatentModel", path: str | None) -> NoisyClassifier:
    """Load the classifier of a model's latents, frozen, in float32: `path`, or the model's own.

    Raises UserError for files that are missing, damaged, or of other latents.
    """
    files = settings, weights = find_noise_aware(model.folder, path)
    given = f"method.path={settings.parent}"
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{given}: {file.name} is missing; must be a classifier of noisy latents, as "
                "scripts/embedded/train_noise_aware.py trains it"
            )
    check_whole(weights, f"{given}: {weights.name}")
    try:
        classifier = NoisyClassifier(**json.loads(settings.read_text("utf-8")))
        classifier.load_state_dict(load_file(weights))
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{given}: cannot be loaded: {reason}") from error
    if classifier.in_channels != model.latent_shape[0]:
        raise UserError(
            f"{given}: takes latents of {classifier.in_channels} channels; must be "
            f"{model.latent_shape[0]}, as of model={model.name}"
        )
    return classifier.float().to(model.device).eval().requires_grad_(False)
