"""Cross entropy to a class: a way to ask for what the model has no word for.

DOODL calls it vocabulary expansion (Wallace et al. 2023, section 5.2). The raw score is
log p(class | picture), at most 0.
"""

from typing import TYPE_CHECKING

from doodl_cli.config import Classifier
from doodl_cli.guidance.guidance import Guidance, Score, ignore_prompts
from doodl_cli.models.classifier import Classifier as ImageClassifier
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
    number = find_target(classifier, settings.target)
    return Guidance(
        score=log_probability(classifier, number),
        weight=settings.weight,
        n_crops=settings.n_crops,
        crop_size=classifier.image_size,
        facts={
            **classifier.facts,
            "class": number,
            "label": classifier.labels[number] if classifier.labels else None,
        },
    )


def find_target(classifier: ImageClassifier, target: str | int) -> int:
    """Return the number of the class that the user names. Raises UserError."""
    return find_class(classifier.labels, classifier.n_classes, target, "guidance.classifier.target")


def log_probability(classifier: ImageClassifier, number: int) -> Score:
    """Return the score log p(class | picture)."""
    return ignore_prompts(lambda images: classifier.log_probabilities(images)[:, number])
