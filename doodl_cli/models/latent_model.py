"""A latent diffusion model as the rest of the program sees it: text in, a net, pictures out.

Reads a diffusers pipeline folder (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, tokenizer,
scheduler); the scheduler's settings become a `Schedule` and are not used otherwise.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from doodl_cli.errors import UserError
from doodl_cli.gradient import count_saved_bytes
from doodl_cli.models.classifier import Classifier, load_classifier
from doodl_cli.models.clip import Clip, load_clip
from doodl_cli.models.locate import (
    PIPELINE_FILES,
    SCORER_FILES,
    check_files,
    find_folder,
    hash_file,
)
from doodl_cli.sampling.schedule import PREDICTIONS, Schedule, cumulate, linear, scaled_linear
from doodl_cli.sampling.solve import Net

SMALL_NETWORK = 50_000_000  # parameters; the whole graph of a larger one is not worth counting
SPACING = {"leading": "leading", "trailing": "trailing", "linspace": "trailing"}


@dataclass
class Calls:
    """Evaluations of the network and those that carried a gradient, counted a sample each."""

    network: int = 0
    vjps: int = 0


@dataclass(frozen=True)
class GuidedNet:
    """The UNet with its text and classifier-free guidance (Ho and Salimans 2022, 2207.12598).

    net = net_negative + cfg_scale (net_prompt - net_negative), one batch of two; `context` is
    (2 b, tokens, d), the negative half first, or (b, tokens, d) for cfg_scale = 1.
    """

    unet: Any
    context: Tensor
    cfg_scale: float
    calls: Calls

    def __getitem__(self, samples: slice) -> "GuidedNet":
        """Return the network of some of the samples."""
        halves = 1 if self.cfg_scale == 1.0 else 2
        context = self.context.unflatten(0, (halves, -1))[:, samples].flatten(0, 1)
        return replace(self, context=context)

    def __call__(self, x: Tensor, t: int) -> Tensor:
        self.calls.network += len(x)
        self.calls.vjps += len(x) if x.requires_grad and torch.is_grad_enabled() else 0
        x = x.to(self.context.dtype)
        guided = len(self.context) == 2 * len(x)
        x = torch.cat([x, x]) if guided else x
        out = self.unet(x, t, encoder_hidden_states=self.context, return_dict=False)[0]
        if not guided:
            return out
        negative, positive = out.chunk(2)
        return negative + self.cfg_scale * (positive - negative)


@dataclass(frozen=True)
class LatentModel:
    """A model in evaluation mode with frozen weights.

    `latent_shape` is (c, h, w); `weights` maps file names to their sha256; `cut` holds
    the texts that were said to be too long.
    """

    name: str
    folder: Path
    schedule: Schedule
    latent_shape: tuple[int, int, int]
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    device: torch.device
    weights: dict[str, str]
    calls: Calls = field(default_factory=Calls)
    cut: set[str] = field(default_factory=set)

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the pictures: the auto-encoder halves them between its blocks."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return factor * self.latent_shape[1], factor * self.latent_shape[2]

    def check_texts(self, texts: Sequence[str]) -> None:
        """Say, once a text, what is cut off because it is too long for the text encoder."""
        length = self.tokenizer.model_max_length
        for text in dict.fromkeys(texts):
            if text in self.cut:
                continue
            ids = self.tokenizer(text)["input_ids"]
            if len(ids) > length:
                self.cut.add(text)
                rest = self.tokenizer.decode(ids[length - 1 : -1])
                print(f"prompt: cut to {length - 2} tokens, without {rest!r}", file=sys.stderr)

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Tensor:
        """Return the text encoder's states (b, tokens, d); words beyond its length are cut."""
        self.check_texts(texts)
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return self.text_encoder(tokens["input_ids"].to(self.device)).last_hidden_state

    def net(self, prompts: list[str], negative_prompts: list[str], cfg_scale: float) -> Net:
        """Return the guided network for one prompt a sample."""
        context = self.encode_text(prompts)
        if cfg_scale != 1.0:
            context = torch.cat([self.encode_text(negative_prompts), context])
        return GuidedNet(self.unet, context, cfg_scale, self.calls)

    @cached_property
    def bytes_per_call(self) -> float:
        """What one guided evaluation for one sample keeps for its gradient; inf if not small."""
        if sum(p.numel() for p in self.unet.parameters()) > SMALL_NETWORK:
            return math.inf
        x = torch.zeros(1, *self.latent_shape, device=self.device)
        return count_saved_bytes(replace(self, calls=Calls()).net([""], [""], 2.0), x, 0)

    def decode(self, x_0: Tensor) -> Tensor:
        """Return pictures (b, 3, h, w), float32, about [-1, 1], of latents (b, c, h, w)."""
        z = (x_0 / self.vae.config.scaling_factor).to(self.vae.dtype)
        return self.vae.decode(z, return_dict=False)[0].float()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the mean latents (b, c, h, w), float64, of pictures in [-1, 1]."""
        z = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist.mode()
        return z.double() * self.vae.config.scaling_factor

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of its pictures."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.latent_shape[1] * factor, self.latent_shape[2] * factor

    @cached_property
    def clip_a(self) -> Clip:
        """The pair that guides."""
        name = f"local-dir:{self.folder / 'clip_a'}"
        return load_clip(name, None, self.device, f"model.path={self.folder}")

    @cached_property
    def clip_b(self) -> Clip:
        """The held-out pair: it measures and never guides."""
        name = f"local-dir:{self.folder / 'clip_b'}"
        return load_clip(name, None, self.device, f"model.path={self.folder}")

    @cached_property
    def classifier_a(self) -> Classifier:
        """The classifier that guides."""
        folder = str(self.folder / "classifier_a")
        return load_classifier("transformers", None, folder, self.device, "model")

    @cached_property
    def classifier_b(self) -> Classifier:
        """The held-out classifier."""
        folder = str(self.folder / "classifier_b")
        return load_classifier("transformers", None, folder, self.device, "model")

    @cached_property
    def aesthetic_head(self) -> tuple[Tensor, Tensor]:
        """Weight (1, d) and bias (1) of the linear head on `clip_a`'s picture embedding."""
        head = load_file(self.folder / "aesthetic/head.safetensors", str(self.device))
        return head["weight"].float(), head["bias"].float()


def load_model(name: str, path: str | None, device: torch.device, dtype: str) -> LatentModel:
    """Load a model from its folder, offline.

    `dtype` is what the UNet and the auto-encoder compute in. Raises UserError for files that are
    missing, damaged, or of a kind that is not supported.
    """
    folder = find_folder(name, path)
    check_files(folder, (*PIPELINE_FILES, *SCORER_FILES))
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # what is said on stderr is a run's progress, or one line of error
    torch_dtype = getattr(torch, dtype)
    options = {"torch_dtype": torch_dtype, "low_cpu_mem_usage": False, "local_files_only": True}
    try:
        schedule = read_schedule(folder / "scheduler/scheduler_config.json")
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", **options)
        vae = AutoencoderKL.from_pretrained(folder / "vae", **options)
        text_encoder = CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=torch_dtype, local_files_only=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"model.path={folder}: cannot be loaded: {reason}") from error
    networks: tuple[Any, ...] = (unet, vae, text_encoder)
    for network in networks:
        network.to(device).eval().requires_grad_(False)
    size = unet.config.sample_size
    return LatentModel(
        name=name,
        folder=folder,
        schedule=schedule,
        latent_shape=(unet.config.in_channels, size, size),
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        device=device,
        weights={
            file: hash_file(folder / file) for file in (*PIPELINE_FILES, *SCORER_FILES)
        },
    )  # fmt: skip


def read_schedule(path: Path) -> Schedule:
    """Return the schedule that a diffusers scheduler_config.json describes.

    Raises ValueError for what is not supported.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    n_train = config.get("num_train_timesteps", 1000)
    kinds = {"scaled_linear": scaled_linear, "linear": linear}
    kind = config.get("beta_schedule", "linear")
    prediction = config.get("prediction_type", "epsilon")
    if kind not in kinds:
        raise ValueError(f"beta_schedule {kind!r}: must be one of {', '.join(kinds)}")
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction_type {prediction!r}: must be one of {', '.join(PREDICTIONS)}")
    betas = kinds[kind](config.get("beta_start", 0.0001), config.get("beta_end", 0.02), n_train)
    alpha_bar = cumulate(betas, config.get("rescale_betas_zero_snr", False))
    return Schedule(
        alpha_bar=alpha_bar,
        alpha_bar_end=1.0 if config.get("set_alpha_to_one", True) else alpha_bar[0],
        prediction=prediction,
        spacing=SPACING.get(config.get("timestep_spacing", "leading"), "leading"),
        offset=config.get("steps_offset", 0),
    )
