"""Cross entropy to a class: a way to ask for what the model has no word for.

DOODL calls it vocabulary expansion (Wallace et al. 2023, section 5.2). The raw score is
log p(class | picture), at most 0.
"""

from typing import TYPE_CHECKING

import torch

from doodl_cli.config import Classifier
from doodl_cli.guidance.guidance import Guidance, ignore_prompts
from doodl_cli.models.classifier import find_class, load_classifier

if TYPE_CHECKING:
    from doodl_cli.models.latent_model import LatentModel


def build_classifier(settings: Classifier, model: "LatentModel") -> Guidance:
    if settings.source == "embedded":
        classifier = model.classifier_a
    else:
        classifier = load_classifier(
            settings.source, settings.name, settings.path, model.device, "guidance.classifier"
        )
    with torch.no_grad():
        probe = classifier.log_probabilities(torch.zeros(1, 3, *model.image_size).to(model.device))
    number = find_class(
        classifier.labels, probe.shape[1], settings.target, "guidance.classifier.target"
    )
    return Guidance(
        score=ignore_prompts(lambda images: classifier.log_probabilities(images)[:, number]),
        weight=settings.weight,
        n_crops=settings.n_crops,
        crop_size=classifier.image_size,
        facts={
            **classifier.facts,
            "class": number,
            "label": classifier.labels[number] if classifier.labels else None,
        },
    )
