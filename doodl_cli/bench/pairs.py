"""A page for human judgement: pairs of two methods' pictures, blind and shuffled, offline.

Nothing that is shown says which method is where: pictures are encoded anew, without text, and the
sides are sealed (base64, against a look and not against intent) until the answers are saved.
"""

import base64
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from doodl_cli.report.page import encode

SIDES = ("left", "right")


@dataclass(frozen=True)
class Pair:
    """Two pictures for one question, by method; `name` is what it is known by in the bench.

    `unit` is its prompt, which pairs of several seeds have in common.
    """

    name: str
    unit: str
    question: str
    pictures: dict[str, Path]
    reference: Path | None = None


def draw_pairs_page(pairs: Sequence[Pair], seed: int, n: int) -> tuple[str, int]:
    """Return the page of at most `n` pairs; `seed` draws and shuffles them and their sides.

    Pairs whose pictures are equal show nothing: others are drawn, and how many were passed over is
    returned beside the page.
    """
    rng = random.Random(seed)
    shown: list[dict[str, str]] = []
    sides, n_equal = {}, 0
    names = "\n".join(f"{pair.name} {sorted(pair.pictures)}" for pair in pairs)
    study = hashlib.sha256(f"{seed} {n}\n{names}".encode()).hexdigest()[:16]
    for pair in rng.sample(list(pairs), len(pairs)):
        if len(shown) == n:
            break
        methods = sorted(pair.pictures)
        rng.shuffle(methods)
        pictures = [encode(pair.pictures[method]) for method in methods]
        if pictures[0] == pictures[1]:
            n_equal += 1
            continue
        number = hashlib.sha256(f"{study} {pair.name}".encode()).hexdigest()[:12]
        sides[number] = {"name": pair.name, "unit": pair.unit}
        sides[number] |= zip(SIDES, methods, strict=True)
        entry = {"id": number, "question": pair.question}
        entry |= dict(zip(SIDES, pictures, strict=True))
        if pair.reference is not None:
            entry["reference"] = encode(pair.reference)
        shown.append(entry)
    sealed = base64.b64encode(json.dumps(sides).encode()).decode("ascii")
    content = json.dumps({"id": study, "pairs": shown, "sealed": sealed}).replace("<", "\\u003c")
    template = resources.files("doodl_cli.bench").joinpath("pairs.html").read_text("utf-8")
    return template.replace("{{study}}", content), n_equal
