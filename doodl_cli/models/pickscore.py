"""PickScore: a CLIP ViT-H/14 tuned to what people preferred (Kirstain et al. 2023, 2305.01569)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl_cli.errors import UserError
from doodl_cli.models.fetch import cache_first, explain, hash_weights, quiet
from doodl_cli.models.half import in_half

REPOSITORY = "yuvalkirstain/PickScore_v1"
N_TOKENS = 77


class PickScore:
    """A CLIPModel of transformers with its own preprocessing, differentiable in the picture."""

    def __init__(self, model: Any, processor: Any, tokenizer: Any, facts: dict[str, Any]) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = tokenizer
        self.facts = facts
        self.scale: float = model.logit_scale.exp().item()
        self.image_size: int = model.config.vision_config.image_size

    def embed_images(self, images: Tensor) -> Tensor:
        """Return unit vectors (b, d) for pictures (b, 3, h, w) in [-1, 1]."""
        pixels = self.processor(images=(images.float() + 1) * 127.5, return_tensors="pt")
        dtype = self.model.visual_projection.weight.dtype

        def features(pixels: Tensor) -> Tensor:
            return self.model.get_image_features(pixel_values=pixels).pooler_output

        return F.normalize(in_half(features, pixels["pixel_values"], dtype), dim=1)

    @torch.no_grad()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Return unit vectors (n, d), one a text."""
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=N_TOKENS, return_tensors="pt"
        )
        features = self.model.get_text_features(**tokens.to(self.model.logit_scale.device))
        device = self.model.visual_projection.weight.device
        return F.normalize(features.pooler_output, dim=1).to(device)


def load_pickscore(path: str | None, device: torch.device, key: str) -> PickScore:
    """Load PickScore from a folder, or from the hub's cache, which is filled once.

    Raises UserError, with the `key` that the user gives the folder by.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    where = path or REPOSITORY

    def load(offline: bool) -> tuple[Any, Any, Any]:
        options: Any = {"local_files_only": offline}
        return (
            CLIPModel.from_pretrained(where, dtype=torch.float32, **options),
            AutoImageProcessor.from_pretrained(where, **options),
            AutoTokenizer.from_pretrained(where, **options),
        )

    try:
        with quiet():
            model, processor, tokenizer = cache_first(load)
    except Exception as error:  # what it raises on damaged files has no common class
        raise UserError(
            f"{key}={path or 'null'}: PickScore cannot be loaded: {explain(error)}; must be a "
            f"folder with the files of {REPOSITORY}, or null where there is a network"
        ) from error
    model.eval().requires_grad_(False)
    if device.type == "cuda":  # as a large CLIP: texts are few
        for part in (model.vision_model, model.visual_projection):
            part.to(device, torch.float16)
    else:
        model.to(device)
    facts = {"name": where, "sha256": hash_weights(where)}
    return PickScore(model, processor, tokenizer, facts)
