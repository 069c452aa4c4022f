"""What can be read off a picture without a judge: its background's colour, what is where.

A row of a suite says what should be there, `check`:

    background   a word of BACKGROUNDS: the one nearest to the border's median colour
    top, bottom  the class that held-out classifiers see in that half
    sides        the classes that they see left and right, in any order
    class        the class that they see in the whole picture

The embedded classifiers know half of the drawings each, together nearly all that the model draws;
alone each takes a fifth of the other's for something else (scripts/embedded/measure_checks.py).
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from doodl_cli.bench.metrics import in_batches
from doodl_cli.optimize.assess import from_8_bit

if TYPE_CHECKING:
    from doodl_cli.models.classifier import Classifier
    from doodl_cli.models.latent_model import LatentModel

BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "red": (220, 30, 35),
    "green": (30, 160, 60),
    "blue": (35, 80, 225),
    "yellow": (255, 221, 30),
    "orange": (255, 140, 20),
    "purple": (130, 45, 175),
    "pink": (255, 140, 185),
    "brown": (125, 75, 35),
    "gray": (128, 128, 128),
    "turquoise": (40, 200, 195),
    "light blue": (150, 205, 255),
    "dark blue": (15, 25, 105),
    "light green": (165, 230, 140),
    "dark green": (10, 80, 40),
}
BORDER = 1 / 32  # of the side
WHOLE = "whole"
PLACES = {  # by kind of check, where the classifier looks
    "background": (),
    "top": ("top",),
    "bottom": ("bottom",),
    "sides": ("left", "right"),
    "class": (WHOLE,),
}


def read_border(image: Tensor) -> str:
    """Return the word of the background nearest to the border's median colour; uint8 (3, h, w)."""
    height, width = image.shape[1:]
    y, x = max(1, round(BORDER * height)), max(1, round(BORDER * width))
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[y:-y, x:-x] = False
    colour = image[:, mask].float().median(1).values
    table = torch.tensor(list(BACKGROUNDS.values())).float()
    return list(BACKGROUNDS)[int((table - colour).norm(dim=1).argmin())]


def cut_half(image: Tensor, place: str) -> Tensor:
    """Return the square of half the side in the middle of one half of a picture (3, h, w)."""
    height, width = image.shape[1:]
    y = {"top": 0, "bottom": height // 2}.get(place, height // 4)
    x = {"left": 0, "right": width // 2}.get(place, width // 4)
    return image[:, y : y + height // 2, x : x + width // 2]


def cut_view(image: Tensor, place: str) -> Tensor:
    """Return an 8-bit picture (3, h, w), or one half of it as large, in [-1, 1].

    A drawing in a half has half the size.
    """
    if place == WHOLE:
        return from_8_bit(image)
    part = from_8_bit(cut_half(image, place)[None])
    return F.interpolate(part, image.shape[1:], mode="bicubic", antialias=True).clamp(-1, 1)[0]


def choose_judges(model: "LatentModel", guided: Collection[str]) -> list["Classifier"]:
    """Return the embedded classifiers that judge: both, but none that may have guided.

    `guided` are the names of the guidances.
    """
    others = [] if "classifier" in guided else [model.classifier_a]
    return [model.classifier_b, *others]


def read_views(views: Sequence[Tensor], classifiers: Sequence["Classifier"]) -> Tensor:
    """Return the mean log-likelihood of each class in one or more pictures: (n, c).

    The pictures are (3, h, w) in [-1, 1]; the logarithm is that of the classifiers' mean
    probability. All of them have the same classes.
    """
    device = next(classifiers[0].network.parameters()).device
    by_classifier = [in_batches(each.log_probabilities, views, device) for each in classifiers]
    return torch.stack(by_classifier).logsumexp(0) - math.log(len(classifiers))


@dataclass(frozen=True)
class Seen:
    """What classifiers see in places of pictures: by picture and place the classes' log p (c,)."""

    labels: Sequence[str]
    log_p: Mapping[tuple[int, str], Tensor]

    def likeliest(self, picture: int, place: str) -> str:
        """Return the class of the highest probability."""
        return self.labels[int(self.log_p[picture, place].argmax())]

    def probability(self, picture: int, place: str, name: str) -> float:
        """Return the probability of a class, from 0 to 1; 0 of one that no classifier knows."""
        if name not in self.labels:
            return 0.0
        return math.exp(self.log_p[picture, place][self.labels.index(name)])


def look(
    wanted: Sequence[Mapping[str, Any]],
    images: Sequence[Tensor],
    classifiers: Sequence["Classifier"],
) -> Seen:
    """Let classifiers look at every place where something is wanted; 8-bit pictures (3, h, w)."""
    places = [
        (i, place)
        for i, of_picture in enumerate(wanted)
        for kind in of_picture
        for place in PLACES[kind]
    ]
    views = [cut_view(images[i], place) for i, place in places]
    found = read_views(views, classifiers).cpu() if views else ()
    return Seen(classifiers[0].labels, dict(zip(places, found, strict=True)))


def check(
    wanted: Sequence[Mapping[str, Any]], images: Sequence[Tensor], seen: Seen
) -> list[dict[str, float]]:
    """Return which of the things wanted of each picture hold, 1 or 0 each.

    `images` are 8-bit pictures (3, h, w) of one size, and `seen` what `look` saw in them.
    """

    def holds(i: int, kind: str) -> bool:
        value = wanted[i][kind]
        if kind == "background":
            return read_border(images[i]) == value
        if kind == "sides":
            return sorted(seen.likeliest(i, side) for side in PLACES[kind]) == sorted(value)
        (place,) = PLACES[kind]
        return seen.likeliest(i, place) == value

    return [
        {kind: float(holds(i, kind)) for kind in PLACES if kind in of_picture}
        for i, of_picture in enumerate(wanted)
    ]


def measure_presence(wanted: Sequence[Mapping[str, Any]], seen: Seen) -> list[float | None]:
    """Return how surely the classifiers see what is wanted in each picture, where it should be.

    That is the mean probability of the wanted classes in their places, from 0 to 1; of things that
    may stand in any order, in the likelier one; None where no class is wanted. It tells more of a
    picture than whether each class is the likeliest, which `check` says.
    """

    def rate(i: int, kind: str) -> list[float]:
        value = wanted[i][kind]
        orders = itertools.permutations(value) if kind == "sides" else [(value,)]
        by_order = [
            [seen.probability(i, *at) for at in zip(PLACES[kind], order, strict=True)]
            for order in orders
        ]
        return max(by_order, key=sum)

    found = [
        [p for kind in of_picture if PLACES[kind] for p in rate(i, kind)]
        for i, of_picture in enumerate(wanted)
    ]
    return [sum(of_picture) / len(of_picture) if of_picture else None for of_picture in found]


def share_held(held: Mapping[str, float]) -> float:
    """Return the share of a picture's checks that hold."""
    return sum(held.values()) / len(held)


def explain_unknown(wanted: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a row's `check`, None if nothing is."""
    for name, value in wanted.items():
        if name not in PLACES:
            return f"check.{name}: unknown; must be one of {', '.join(PLACES)}"
        if name == "background" and value not in BACKGROUNDS:
            return f"check.background={value}: must be one of {', '.join(BACKGROUNDS)}"
        if name == "sides" and not (isinstance(value, list) and len(value) == 2):
            return f"check.sides={value}: must be a list of two classes"
    return None
