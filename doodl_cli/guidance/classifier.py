"""Cross entropy to a class: a way to ask for what the model has no word for.

DOODL calls it vocabulary expansion (Wallace et al. 2023, section 5.2). The raw score is
log p(class | picture), at most 0.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from doodl_cli.config import Classifier
from doodl_cli.guidance.guidance import Guidance, Score
from doodl_cli.models.classifier import Classifier as ImageClassifier
from doodl_cli.models.classifier import find_class, load_classifier

if TYPE_CHECKING:
    from doodl_cli.models.latent_model import LatentModel

KEY = "guidance.classifier.target"


def build_classifier(settings: Classifier, model: "LatentModel") -> Guidance:
    if settings.source == "embedded":
        classifier = model.classifier_a
    else:
        classifier = load_classifier(
            settings.source, settings.name, settings.path, model.device, "guidance.classifier"
        )
    labels = classifier.labels
    number = None if settings.target is None else find_target(classifier, settings.target)
    return Guidance(
        score=log_probability(classifier, settings.target),
        weight=settings.weight,
        n_crops=settings.n_crops,
        crop_size=classifier.image_size,
        facts={
            **classifier.facts,
            "class": number,
            "label": None if number is None or not labels else labels[number],
        },
    )


def find_target(classifier: ImageClassifier, target: str | int) -> int:
    """Return the number of the class that the user names. Raises UserError."""
    return find_class(classifier.labels, classifier.n_classes, target, KEY)


def find_targets(
    labels: list[str], n_classes: int, target: str | int | None, prompts: Sequence[str]
) -> list[int]:
    """Return the number of each prompt's own class, or else of `target`. Raises UserError."""
    numbers = []
    for prompt in prompts:
        own = getattr(prompt, "target", None)
        given = target if own is None else own
        assert given is not None  # checked with the rows
        numbers.append(find_class(labels, n_classes, given, KEY))
    return numbers


def log_probability(classifier: ImageClassifier, target: str | int | None) -> Score:
    """Return the score log p(class | picture) of each prompt's own class, or else of `target`."""

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        found = find_targets(classifier.labels, classifier.n_classes, target, prompts)
        numbers = torch.tensor(found, device=images.device)
        return classifier.log_probabilities(images).gather(1, numbers[:, None])[:, 0]

    return score
