"""A LoRA (Hu et al. 2021, arXiv 2106.09685), merged into the weights when the model is loaded.

diffusers reads the file, whichever of the usual layouts it has, and peft merges it: W + s B A. From
then on the networks are as fast as without, and sampler and gradient know nothing of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doodl_cli.errors import UserError
from doodl_cli.models.fetch import explain


def merge_lora(parts: Mapping[str, Any], file: Path, scale: float) -> None:
    """Merge a LoRA into the UNet and the text encoders, in place.

    Raises UserError for a file that cannot be read or does not fit.
    """
    pipeline = make_pipeline(parts)
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
        touched = list(pipeline.get_list_adapters())
        if not touched:
            raise ValueError("it has no layer of these networks")
        pipeline.fuse_lora(components=touched, lora_scale=scale)
        pipeline.unload_lora_weights()
    except Exception as error:  # what they raise on damaged files has no common class
        raise UserError(
            f"model.lora={file}: cannot be used: {explain(error)}; must be a LoRA of this family"
        ) from error


def make_pipeline(parts: Mapping[str, Any]) -> Any:
    """Return the pipeline of diffusers around a model's parts; its scheduler is never asked."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    if "text_encoder_2" in parts:
        return StableDiffusionXLPipeline(**parts, scheduler=scheduler, add_watermarker=False)
    return StableDiffusionPipeline(
        **parts,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
