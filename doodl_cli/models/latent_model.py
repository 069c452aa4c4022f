"""A latent diffusion model as the rest of the program sees it: text in, a net, pictures out.

`load_model` reads the embedded one, a diffusers pipeline folder with its scorers beside it.
"""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from doodl_cli.config import ClipChoice
from doodl_cli.errors import UserError
from doodl_cli.gradient import count_saved_bytes
from doodl_cli.models.capture import Captures
from doodl_cli.models.classifier import Classifier, load_classifier
from doodl_cli.models.clip import Clip, load_clip
from doodl_cli.models.decoder import decode_sparingly
from doodl_cli.models.half import in_half
from doodl_cli.models.locate import (
    PIPELINE_FILES,
    SCORER_FILES,
    check_files,
    find_folder,
    hash_file,
)
from doodl_cli.models.scheduler import read_schedule, read_settings
from doodl_cli.models.text import Embedding, OneEncoder, TwoEncoders
from doodl_cli.sampling.schedule import Schedule
from doodl_cli.sampling.solve import Net

SMALL_NETWORK = 50_000_000  # parameters; the whole graph of a larger one is not worth counting
SMALL_PICTURE = 256 * 256  # pixels; a larger one's decoder computes its parts twice to save memory
MEDIUM_PICTURE = 512 * 512  # pixels; the graph of a larger one's decoder takes too much of a GPU
HALVES = (torch.float16, torch.bfloat16)


@dataclass
class Calls:
    """Evaluations of the network and those that carried a gradient, counted a sample each."""

    network: int = 0
    vjps: int = 0


@dataclass(frozen=True)
class GuidedNet:
    """The UNet with its text and classifier-free guidance (Ho and Salimans 2022, 2207.12598).

    net = net_negative + cfg_scale (net_prompt - net_negative), one batch of two; `context` is
    (2 b, tokens, d), the negative half first, or (b, tokens, d) for cfg_scale = 1. `added` is what
    else SDXL's UNet is conditioned on, in the same order. With `captures` the evaluations are
    replayed from CUDA graphs, where the gradient of one costs least before the next evaluation;
    `apart`: before the next one at the same timestep, as each timestep has a graph of its own.
    """

    unet: Any
    context: Tensor
    cfg_scale: float
    calls: Calls
    added: Mapping[str, Tensor] = field(default_factory=dict)
    captures: Captures | None = None
    apart: bool = False

    def __getitem__(self, samples: slice) -> "GuidedNet":
        """Return the network of some of the samples."""
        halves = 1 if self.cfg_scale == 1.0 else 2

        def take(x: Tensor) -> Tensor:
            return x.unflatten(0, (halves, -1))[:, samples].flatten(0, 1)

        added = {name: take(x) for name, x in self.added.items()}
        return replace(self, context=take(self.context), added=added)

    def __call__(self, x: Tensor, t: int) -> Tensor:
        if self.captures is None:
            return self.halves(x, t)[0]
        self.count(x)
        key = (self.cfg_scale, t if self.apart else None)
        return self.captures(key, self.guided, *self.inputs(x, t)).to(x.device)

    def halves(self, x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Return the guided output and the one for the negative prompt, of one evaluation.

        For cfg_scale = 1 nothing is evaluated for the negative prompt: both are the output.
        """
        self.count(x)
        guided, negative = self.evaluate(*self.inputs(x, t))
        return guided.contiguous().to(x.device), negative.contiguous().to(x.device)

    def count(self, x: Tensor) -> None:
        """Count an evaluation at x."""
        self.calls.network += len(x)
        self.calls.vjps += len(x) if x.requires_grad and torch.is_grad_enabled() else 0

    def inputs(self, x: Tensor, t: int) -> tuple[Tensor, ...]:
        """Return what `evaluate` takes, on the network's device and in its dtype."""
        x = x.to(self.context.dtype).to(self.context.device)
        t_there = torch.tensor(t, device=self.context.device)
        return x, t_there, self.context, *self.added.values()

    def guided(self, *inputs: Tensor) -> Tensor:
        """Return the guided output alone."""
        return self.evaluate(*inputs)[0].contiguous()

    def evaluate(
        self, x: Tensor, t: Tensor, context: Tensor, *added: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return both outputs as a function of tensors alone."""
        guided = len(context) == 2 * len(x)
        x = torch.cat([x, x]) if guided else x
        out = self.unet(
            x,
            t,
            encoder_hidden_states=context,
            added_cond_kwargs=dict(zip(self.added, added, strict=True)) or None,
            return_dict=False,
        )[0]
        if not guided:
            return out, out
        negative, positive = out.chunk(2)
        return negative + self.cfg_scale * (positive - negative), negative


@dataclass(frozen=True)
class LatentModel:
    """A model in evaluation mode with frozen weights.

    `latent_shape` is (c, h, w); `weights` maps file names to their sha256; `folder` is where the
    scorers of the embedded model are, `held_out` the CLIP that measures for another one; `cut`
    holds the texts that were said to be too long; `offload`: the text encoders are on the device
    only while they work.
    """

    name: str
    folder: Path
    schedule: Schedule
    latent_shape: tuple[int, int, int]
    unet: Any
    vae: Any
    text: OneEncoder | TwoEncoders
    device: torch.device
    weights: dict[str, str]
    held_out: ClipChoice | None = None
    offload: bool = False
    calls: Calls = field(default_factory=Calls)
    captures: Captures = field(default_factory=Captures)
    cut: set[str] = field(default_factory=set)

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the pictures: the auto-encoder halves them between its blocks."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return factor * self.latent_shape[1], factor * self.latent_shape[2]

    @property
    def large(self) -> bool:
        """Whether one picture's decoder and scorers keep a GPU busy."""
        return math.prod(self.picture_size) > SMALL_PICTURE

    def check_texts(self, texts: Sequence[str]) -> None:
        """Say, once a text, what is cut off because it is too long for the text encoder."""
        for text in dict.fromkeys(texts):
            rest = "" if text in self.cut else self.text.cut(text)
            if rest:
                self.cut.add(text)
                print(f"prompt: cut to {self.text.n_tokens} tokens, without {rest!r}",
                      file=sys.stderr)  # fmt: skip

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Embedding:
        """Return what the UNet is conditioned on; words beyond the encoder's length are cut."""
        self.check_texts(texts)
        with self.text_encoders():
            return self.text(texts)

    @torch.no_grad()
    def encode_negative(self, texts: list[str]) -> Embedding:
        """Return what the UNet is conditioned on for what to keep away from."""
        self.check_texts(texts)
        encode = self.text.negative if isinstance(self.text, TwoEncoders) else self.text
        with self.text_encoders():
            return encode(texts)

    @contextmanager
    def text_encoders(self) -> Iterator[None]:
        """Have the text encoders on the device."""
        for network in self.text.networks if self.offload else ():
            network.to(self.device)
        yield
        for network in self.text.networks if self.offload else ():
            network.to("cpu")

    def net(
        self,
        prompts: list[str],
        negative_prompts: list[str],
        cfg_scale: float,
        captured: bool = False,
        apart: bool = False,
    ) -> Net:
        """Return the guided network for one prompt a sample.

        `captured`: on a GPU its evaluations are replayed from CUDA graphs; `apart`: from one for
        each timestep, which holds what its gradient needs.
        """
        states, pooled = self.encode_text(prompts)
        if cfg_scale != 1.0:
            negative = self.encode_negative(negative_prompts)
            states = torch.cat([negative.states, states])
            if pooled is not None and negative.pooled is not None:
                pooled = torch.cat([negative.pooled, pooled])
        states = states.to(self.unet.dtype)
        added = {} if pooled is None else self.add_sizes(pooled.to(self.unet.dtype))
        captures = self.captures if captured and self.device.type == "cuda" else None
        return GuidedNet(self.unet, states, cfg_scale, self.calls, added, captures, apart)

    def add_sizes(self, pooled: Tensor) -> dict[str, Tensor]:
        """Return SDXL's further conditions: pictures that were neither scaled nor cropped."""
        height, width = self.picture_size
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=self.device)
        return {
            "text_embeds": pooled,
            "time_ids": sizes.to(pooled.dtype).expand(len(pooled), -1),
        }

    @cached_property
    def bytes_per_call(self) -> float:
        """What one guided evaluation for one sample keeps for its gradient; inf if not small."""
        if sum(p.numel() for p in self.unet.parameters()) > SMALL_NETWORK:
            return math.inf
        x = torch.zeros(1, *self.latent_shape, device=self.device)
        return count_saved_bytes(replace(self, calls=Calls()).net([""], [""], 2.0), x, 0)

    def decode(self, x_0: Tensor) -> Tensor:
        """Return pictures (b, 3, h, w), float32, about [-1, 1], of latents (b, c, h, w)."""
        z = x_0 / self.vae.config.scaling_factor
        if self.vae.dtype in HALVES:
            return in_half(self.decode_scaled, z.float().to(self.device), self.vae.dtype)
        return self.decode_scaled(z.to(self.vae.dtype).to(self.device)).float()

    def decode_scaled(self, z: Tensor) -> Tensor:
        """Return pictures of latents as the auto-encoder has them, in its own dtype."""
        if not self.large:
            return self.vae.decode(z, return_dict=False)[0]
        differentiated = torch.is_grad_enabled() and z.requires_grad
        medium = math.prod(self.picture_size) <= MEDIUM_PICTURE and z.dtype in HALVES
        captured = differentiated and medium and z.is_cuda
        return decode_sparingly(self.vae, z, self.captures if captured else None)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the mean latents (b, c, h, w), float64, of pictures in [-1, 1]."""
        z = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist.mode()
        return z.double().contiguous() * self.vae.config.scaling_factor

    @cached_property
    def clip_a(self) -> Clip:
        """The pair that guides, and whose embedding the aesthetic head reads."""
        return self.load_own_clip("clip_a")

    @cached_property
    def guiding_clips(self) -> list[Clip]:
        """The pairs that guide together: what raises both is less often a quirk of one of them."""
        return [self.clip_a, self.load_own_clip("clip_c")]

    @cached_property
    def clip_b(self) -> Clip:
        """The held-out pair: it measures and never guides."""
        if self.held_out:
            name, pretrained = self.held_out.name, self.held_out.pretrained
            given = f"model.held_out={name} {pretrained or ''}".rstrip()
            return load_clip(name, pretrained, self.device, given)
        return self.load_own_clip("clip_b")

    def load_own_clip(self, name: str) -> Clip:
        """Load a pair from the model's folder. Raises UserError."""
        given = f"model.path={self.folder}"
        return load_clip(f"local-dir:{self.folder / name}", None, self.device, given)

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
        schedule = read_schedule(read_settings(folder / "scheduler/scheduler_config.json"))
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
        text=OneEncoder(text_encoder, tokenizer),
        device=device,
        weights={
            file: hash_file(folder / file) for file in (*PIPELINE_FILES, *SCORER_FILES)
        },
    )  # fmt: skip
