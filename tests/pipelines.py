"""Tiny pipelines of every family with random weights, of diffusers' and transformers' classes.

Small enough for a test, with everything that tells the families apart: the text encoders, what the
UNet is conditioned on, what it predicts, the auto-encoder's scale.
"""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from doodl_cli.models.locate import ASSETS

N_TOKENS, WIDTH = 77, 32
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS = {
    "sd15": (DDIMScheduler, {"set_alpha_to_one": False, "steps_offset": 1}),
    "sd21": (
        DDIMScheduler,
        {"set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction"},
    ),
    "sdxl": (EulerDiscreteScheduler, {"timestep_spacing": "leading", "steps_offset": 1}),
    "sd_turbo": (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
    "sdxl_turbo": (EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
}


def make_pipeline(family, seed=0):
    """Return a pipeline of a family, its weights drawn from the seed."""
    torch.manual_seed(seed)
    xl = family.startswith("sdxl")
    cls, settings = SCHEDULERS[family]
    parts = {
        "unet": make_unet(xl),
        "vae": make_autoencoder(xl),
        "text_encoder": make_text_encoder(CLIPTextModel),
        "tokenizer": make_tokenizer(),
        "scheduler": cls(**NOISE, **settings),
    }
    if not xl:
        return StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    return StableDiffusionXLPipeline(
        **parts,
        text_encoder_2=make_text_encoder(CLIPTextModelWithProjection),
        tokenizer_2=make_tokenizer(),
        add_watermarker=False,
    )


def make_unet(xl):
    conditions = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
    }
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * WIDTH if xl else WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        **(conditions if xl else {}),
    )


def make_autoencoder(xl):
    """Four blocks, so that a picture's side is eight times its latents', as everywhere."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025 if xl else 0.18215,
        force_upcast=xl,
    )


def make_text_encoder(cls):
    tokenizer = make_tokenizer()
    return cls(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=N_TOKENS,
            projection_dim=WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def make_tokenizer():
    """The embedded model's words at the length of the published models."""
    return CLIPTokenizer.from_pretrained(ASSETS / "emoji/tokenizer", model_max_length=N_TOKENS)
