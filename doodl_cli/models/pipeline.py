"""Stable Diffusion 1 and 2, SDXL and their turbo models, from the parts of a diffusers pipeline.

The families differ in their text encoders (text.py) and in what their schedulers say
(scheduler.py); everything else is the same UNet and the same auto-encoder.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from doodl_cli.config import Checkpoint
from doodl_cli.errors import UserError
from doodl_cli.models.checkpoint import (
    FAMILIES,
    SUPPORTED,
    find_checkpoint,
    hash_checkpoint,
    read_family,
    read_index,
)
from doodl_cli.models.fetch import explain, quiet
from doodl_cli.models.latent_model import LatentModel
from doodl_cli.models.locate import hash_file
from doodl_cli.models.lora import merge_lora
from doodl_cli.models.scheduler import read_schedule, read_settings
from doodl_cli.models.text import OneEncoder, TwoEncoders

CONDITIONED = {OneEncoder: None, TwoEncoders: "text_time"}  # the UNet's addition_embed_type


def load_pipeline(settings: Checkpoint, device: torch.device, dtype: str) -> LatentModel:
    """Load a checkpoint, frozen. Raises UserError for what is missing, damaged or not supported.

    `dtype` is what the networks compute in, except for an auto-encoder that overflows in float16.
    """
    assert settings.path is not None
    lora = None if settings.lora is None else Path(settings.lora).expanduser()
    if lora and not lora.is_file():
        raise UserError(f"model.lora={lora}: no such file; must be a LoRA's")
    folder = find_checkpoint(settings.path, settings.variant)
    given = f"model.path={settings.path}"
    try:
        with quiet():
            parts = load_parts(folder, settings.variant, getattr(torch, dtype))
            if lora:
                merge_lora(parts, lora, settings.lora_scale)
            scheduler = read_settings(folder / "scheduler/scheduler_config.json")
            model = adapt(
                parts,
                scheduler,
                zero_for_none=read_index(folder).get("force_zeros_for_empty_prompt", True),
                device=device,
                size=(settings.height, settings.width),
                offload=True,
            )
    except UserError:
        raise
    except Exception as error:  # what they raise on damaged files has no common class
        raise UserError(f"{given}: cannot be loaded: {explain(error)}") from error
    weights = hash_checkpoint(folder, settings.variant)
    return replace(
        model,
        name=settings.name,
        folder=folder,
        weights=weights | ({str(lora): hash_file(lora)} if lora else {}),
        held_out=settings.held_out[0] if settings.held_out else None,
    )


def load_parts(folder: Path, variant: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """Return the networks and tokenizers of a checked folder, by the names of diffusers."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()  # stderr is for a run's progress, or one error
    transformers.utils.logging.disable_progress_bar()
    parts: dict[str, Any] = {}
    for part, name in read_family(folder).items():
        options: dict[str, Any] = {"variant": variant, "output_loading_info": True}
        if hasattr(transformers, name):
            cls, options["dtype"] = getattr(transformers, name), dtype
            tokenizer = part.replace("text_encoder", "tokenizer")
            parts[tokenizer] = transformers.CLIPTokenizer.from_pretrained(
                folder / tokenizer, local_files_only=True
            )
        else:
            cls, options["low_cpu_mem_usage"] = getattr(diffusers, name), False
            options["torch_dtype"] = dtype
        parts[part], loading = cls.from_pretrained(folder / part, local_files_only=True, **options)
        if loading["missing_keys"]:
            raise ValueError(f"{part} lacks {sorted(loading['missing_keys'])[0]}")
    return parts


def adapt(
    parts: Mapping[str, Any],
    scheduler: Mapping[str, Any],
    zero_for_none: bool,
    device: torch.device,
    size: tuple[int | None, int | None] = (None, None),
    offload: bool = False,
) -> LatentModel:
    """Return the model that a pipeline's parts make, moved to the device, frozen.

    `size`: height and width of the pictures, None for those that the UNet was trained at;
    `offload`: a GPU has the text encoders only while they work. Raises ValueError for what is not
    supported.
    """
    unet, vae = parts["unet"], parts["vae"]
    text: OneEncoder | TwoEncoders = OneEncoder(parts["text_encoder"], parts["tokenizer"])
    if "text_encoder_2" in parts:
        text = TwoEncoders(
            (parts["text_encoder"], parts["text_encoder_2"]),
            (parts["tokenizer"], parts["tokenizer_2"]),
            zero_for_none,
        )
        if vae.config.force_upcast and vae.dtype == torch.float16:  # SDXL's overflows
            vae = copy.deepcopy(vae).float()  # the pipeline's own stays as it is
    check_networks(unet, vae, text)
    offload = offload and device.type == "cuda"
    for network in (unet, vae):
        network.to(device)
    for network in text.networks:
        network.to("cpu" if offload else device)
    for network in (unet, vae, *text.networks):
        network.eval().requires_grad_(False)
    return LatentModel(
        name="diffusers",
        folder=Path(),
        schedule=read_schedule(scheduler),
        latent_shape=find_shape(unet, vae, size),
        unet=unet,
        vae=vae,
        text=text,
        device=device,
        weights={},
        offload=offload,
    )


def check_networks(unet: Any, vae: Any, text: OneEncoder | TwoEncoders) -> None:
    """Check that the UNet asks for nothing but text. Raises ValueError."""
    found, expected = unet.config.addition_embed_type, CONDITIONED[type(text)]
    if found != expected:
        raise ValueError(f"the UNet's addition_embed_type is {found}; must be {expected}")
    if unet.config.time_cond_proj_dim or unet.config.class_embed_type:
        raise ValueError("the UNet asks for a guidance scale or a class; must ask for text alone")
    if unet.config.in_channels != vae.config.latent_channels:
        raise ValueError(
            f"the UNet takes {unet.config.in_channels} channels; must be the auto-encoder's "
            f"{vae.config.latent_channels}"
        )
    if vae.config.latents_mean is not None:
        raise ValueError("the auto-encoder shifts its latents; must only scale them")


def find_shape(unet: Any, vae: Any, size: tuple[int | None, int | None]) -> tuple[int, int, int]:
    """Return the shape (c, h, w) of the latents of pictures of a height and width."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    own = unet.config.sample_size
    own = own if isinstance(own, tuple | list) else (own, own)
    h, w = (side // factor if side else own[i] for i, side in enumerate(size))
    if h is None or w is None:
        raise ValueError("the UNet does not say its size; model.height and model.width must")
    return unet.config.in_channels, h, w


def adapt_pipeline(
    pipeline: Any, height: int | None = None, width: int | None = None
) -> LatentModel:
    """Return the model of a pipeline that diffusers has loaded, sharing its networks, frozen.

    Its scheduler gives the noise schedule and the spacing, whatever sampler it is. Raises
    ValueError for a pipeline that is not supported.
    """
    family = type(pipeline).__name__
    if family not in FAMILIES:
        raise ValueError(f"a {family}; must be {SUPPORTED}")
    return adapt(
        {name: part for name, part in pipeline.components.items() if part is not None},
        pipeline.scheduler.config,
        zero_for_none=pipeline.config.get("force_zeros_for_empty_prompt", True),
        device=pipeline.unet.device,
        size=(height, width),
    )
