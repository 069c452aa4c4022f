"""Scorers of what people prefer: CLIPs tuned on pairs of pictures that people chose between.

    pickscore   Kirstain et al. 2023, 2305.01569: the cosine times its scale, about 20
    hps         HPS v2.1, Wu et al. 2023, 2306.09341: the cosine, about 0.27

Both are the similarity of picture and prompt in a ViT-H/14.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from doodl_cli.config import Preference
from doodl_cli.errors import UserError
from doodl_cli.guidance.clip import text_similarity
from doodl_cli.guidance.guidance import Guidance
from doodl_cli.models.clip import load_clip
from doodl_cli.models.fetch import fetch_from_hub
from doodl_cli.models.pickscore import load_pickscore

if TYPE_CHECKING:
    from doodl_cli.models.latent_model import LatentModel

HPS_CLIP = "ViT-H-14"
HPS_REPOSITORY = "xswu/HPSv2"
HPS_FILE = "HPS_v2.1_compressed.pt"


def build_pickscore(settings: Preference, model: "LatentModel") -> Guidance:
    scorer = load_pickscore(settings.path, model.device, "guidance.pickscore.path")
    similarity = text_similarity(scorer)
    return Guidance(
        score=lambda images, prompts: scorer.scale * similarity(images, prompts),
        weight=settings.weight,
        n_crops=settings.n_crops,
        crop_size=scorer.image_size,
        facts=scorer.facts,
    )


def build_hps(settings: Preference, model: "LatentModel") -> Guidance:
    given = f"guidance.hps.path={settings.path or 'null'}"
    file = Path(settings.path or fetch_from_hub(HPS_REPOSITORY, HPS_FILE, given))
    if not file.is_file():
        raise UserError(f"{given}: no such file; must be {HPS_FILE} of {HPS_REPOSITORY}, or null")
    clip = load_clip(HPS_CLIP, str(file), model.device, given)
    return Guidance(
        score=text_similarity(clip),
        weight=settings.weight,
        n_crops=settings.n_crops,
        crop_size=clip.image_size,
        facts=clip.facts,
    )
