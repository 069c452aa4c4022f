"""Models of the real architectures with random weights: as fast and as large as the real ones.

Nothing is downloaded. The tokenizer is the embedded model's, padded to 77 tokens; the aesthetic
head is random.
"""

from collections.abc import Mapping
from typing import Any

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from doodl_cli.guidance import Guidance
from doodl_cli.guidance.aesthetic import aesthetic_score
from doodl_cli.guidance.clip import spherical_distance, text_similarity
from doodl_cli.models.clip import Clip
from doodl_cli.models.latent_model import LatentModel
from doodl_cli.models.locate import ASSETS
from doodl_cli.models.pipeline import adapt
from doodl_cli.models.tuning import tune
from doodl_cli.problem import Problem, pose_problem
from doodl_cli.sampling import SAMPLERS, make_grid

N_TOKENS = 77
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
LEADING = {**NOISE, "set_alpha_to_one": False, "steps_offset": 1}
TRAILING = {**NOISE, "timestep_spacing": "trailing"}
LINEAR = {"use_linear_projection": True}
UNETS: Mapping[str, dict[str, Any]] = {
    "sd14": {"sample_size": 64, "cross_attention_dim": 768},
    "sd_turbo": {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        **LINEAR,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
        "up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        **LINEAR,
    },
}
SCHEDULERS = {"sd14": LEADING, "sd_turbo": TRAILING, "sdxl": LEADING}
ENCODERS = {  # width, layers, heads of the text encoders
    "sd14": [(768, 12, 12)],
    "sd_turbo": [(1024, 23, 16)],
    "sdxl": [(768, 12, 12), (1280, 32, 20)],
}


def make_text_encoder(cls: type, width: int, n_layers: int, n_heads: int) -> nn.Module:
    """Return a CLIP text encoder with random weights."""
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        projection_dim=width,
    )
    return cls(config)


def make_autoencoder(xl: bool) -> nn.Module:
    """Return Stable Diffusion's auto-encoder, or SDXL's, with random weights."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        scaling_factor=0.13025 if xl else 0.18215,
        force_upcast=xl,
    )


def make_model(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    unet_checkpointing: bool = False,
    compiled: bool = False,
) -> LatentModel:
    """Return a model of a real architecture, frozen."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "emoji/tokenizer", model_max_length=N_TOKENS)
    with torch.device(device):
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel(**UNETS[name]),
            "vae": make_autoencoder(name == "sdxl"),
        }
        classes = (CLIPTextModel, CLIPTextModelWithProjection)
        for cls, shape, suffix in zip(classes, ENCODERS[name], ("", "_2"), strict=False):
            parts[f"text_encoder{suffix}"] = make_text_encoder(cls, *shape)
            parts[f"tokenizer{suffix}"] = tokenizer
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.to(dtype)
    model = adapt(parts, SCHEDULERS[name], zero_for_none=True, device=device, offload=True)
    tune(model, unet_checkpointing, compiled)
    return model


def make_clip(name: str, device: torch.device, half: bool) -> Clip:
    """Return a CLIP of open_clip with random weights."""
    with torch.device(device):
        model = open_clip.create_model(name, device=device)
    clip = Clip(model, open_clip.get_tokenizer(name), {}).to(device)
    if half:
        clip.spare()
    return clip


def make_guidance(name: str, device: torch.device, half: bool) -> dict[str, Guidance]:
    """Return the aesthetic guidance by ViT-L/14, or CLIP guidance by ViT-H/14, on 16 crops."""
    torch.manual_seed(1)
    if name == "aesthetic":
        clip = make_clip("ViT-L-14-quickgelu", device, half)
        head = (torch.randn(1, 768, device=device), torch.zeros(1, device=device))
        score = aesthetic_score(clip, [head])
        return {name: Guidance(score, n_crops=16, crop_size=clip.image_size)}
    clip = make_clip("ViT-H-14", device, half)
    score = text_similarity(clip)
    return {name: Guidance(score, spherical_distance, n_crops=16, crop_size=clip.image_size)}


def pose(
    model: LatentModel,
    guidance: Mapping[str, Guidance],
    n_samples: int = 1,
    *,
    sampler: str,
    n_steps: int,
    cfg_scale: float,
    memory: str,
) -> Problem:
    """Return the problem of a red apple with the seeds 0 to n_samples - 1."""
    return pose_problem(
        model,
        table=SAMPLERS[sampler](make_grid(model.schedule, n_steps)),
        prompts=["a red apple"] * n_samples,
        negative_prompts=[""] * n_samples,
        seeds=list(range(n_samples)),
        cfg_scale=cfg_scale,
        memory=memory,
        guidance=guidance,
        evaluation={},
    )
