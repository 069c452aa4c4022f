"""From a configuration's sections to guidances, their scorers the model's own or the user's."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from doodl_cli.config import Classifier, ClipImage, Evaluation, GuidanceSettings
from doodl_cli.errors import UserError
from doodl_cli.guidance.aesthetic import build_aesthetic
from doodl_cli.guidance.classifier import build_classifier, log_probability
from doodl_cli.guidance.clip import (
    build_clip_image,
    build_clip_text,
    reference_similarity,
    text_similarity,
)
from doodl_cli.guidance.custom import build_custom
from doodl_cli.guidance.guidance import Guidance, Score, ignore_prompts
from doodl_cli.guidance.preference import build_hps, build_pickscore
from doodl_cli.guidance.scores import colourfulness, symmetry

if TYPE_CHECKING:
    from doodl_cli.models.latent_model import LatentModel


def build_guidance(
    settings: Mapping[str, GuidanceSettings], model: "LatentModel"
) -> dict[str, Guidance]:
    """Return the named guidances. Raises UserError for what cannot be loaded."""
    return {name: BUILDERS[name](chosen, model) for name, chosen in settings.items()}


def build_pixels(function: Callable[[Tensor], Tensor]) -> Callable[..., Guidance]:
    """Return the builder of a score on pixels, which takes crops at 64 px if any."""

    def build(settings: GuidanceSettings, model: "LatentModel") -> Guidance:
        return Guidance(ignore_prompts(function), weight=settings.weight, n_crops=settings.n_crops)

    return build


BUILDERS: dict[str, Callable[..., Guidance]] = {
    "aesthetic": build_aesthetic,
    "classifier": build_classifier,
    "clip_image": build_clip_image,
    "clip_text": build_clip_text,
    "colourfulness": build_pixels(colourfulness),
    "custom": build_custom,
    "hps": build_hps,
    "pickscore": build_pickscore,
    "symmetry": build_pixels(symmetry),
}


def build_evaluation(
    evaluate: Mapping[str, Evaluation | GuidanceSettings],
    settings: Mapping[str, GuidanceSettings],
    model: "LatentModel",
) -> dict[str, Score]:
    """Return the named scorers, which measure and never enter the loss.

    What reference pictures or the model's own classifier guide, their held-out twins measure too.
    """
    scores = {name: build_score(name, chosen, model) for name, chosen in evaluate.items()}
    for chosen in settings.values():
        if isinstance(chosen, ClipImage):
            scores["clip_image_b"] = reference_similarity(model.clip_b, chosen, model)
        if isinstance(chosen, Classifier) and chosen.source == "embedded":
            scores["classifier_b"] = log_probability(model.classifier_b, chosen.target)
    return scores


def build_score(name: str, chosen: Evaluation | GuidanceSettings, model: "LatentModel") -> Score:
    """Return a held-out score: of pair B, or a guidance's own. Raises UserError."""
    if name == "clip_text_b":
        return text_similarity(model.clip_b)
    try:
        return BUILDERS[name](chosen, model).score
    except UserError as error:
        raise UserError(str(error).replace(f"guidance.{name}", f"evaluate.{name}")) from error
