"""What the saved answers of a pairs page say: who wins, how surely, and whether raters agree."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from doodl_cli.bench.statistics import Interval, agreement, average, bootstrap_mean
from doodl_cli.errors import UserError

CHOICES = ("left", "right", "tie")


@dataclass(frozen=True)
class Answers:
    """One rater's file: the methods compared, and by pair the method preferred, or "tie".

    `units`: by pair its prompt, which pairs of several seeds have in common.
    """

    study: str
    rater: str
    methods: tuple[str, str]
    preferred: dict[str, str]
    units: dict[str, str]


@dataclass(frozen=True)
class Tally:
    """How often the first of two methods is preferred, a tie half.

    `wins`: the mean over prompts, each the mean over its pairs, and of these over their raters.
    `alpha`: Krippendorff's, NaN where no pair has two answers.
    """

    methods: tuple[str, str]
    wins: Interval
    n_pairs: int
    n_units: int
    n_ties: int
    raters: list[str]
    alpha: float
    same: float | None


def read_answers(path: str) -> Answers:
    """Return the answers in a file. Raises UserError for one that the page did not save."""
    must = "must be a file of answers that the page of `doodl bench pairs` saved"
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); {must}") from error
    try:
        study, rater, answers = content["study"], content["rater"], content["answers"]
        found = {answer["pair"]: read_answer(answer) for answer in answers}
        units = {answer["pair"]: str(answer["unit"]) for answer in answers}
        compared = {tuple(sorted((a["left"], a["right"]))) for a in answers}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is damaged or something else ({error!r}); {must}") from error
    if not found:
        raise UserError(f"{path}: holds no answer; {must}")
    if len(compared) > 1:
        raise UserError(f"{path}: compares several pairs of methods; {must}")
    (methods,) = compared
    return Answers(str(study), str(rater) or Path(path).stem, methods, found, units)


def read_answer(answer: dict[str, Any]) -> str:
    """Return the method that an answer prefers, or "tie"."""
    if answer["choice"] not in CHOICES:
        raise ValueError(f"choice={answer['choice']}")
    return "tie" if answer["choice"] == "tie" else str(answer[answer["choice"]])


def tally(answers: Sequence[Answers], ours: str) -> Tally:
    """Count the answers of one study; `ours` is named first if it takes part.

    Raises ValueError where they are of several studies, or two of one rater.
    """
    studies = {given.study for given in answers}
    if len(studies) > 1:
        raise ValueError("answers of several pages; one page's go together")
    raters = [given.rater for given in answers]
    if len(set(raters)) < len(raters):
        twice = next(name for name in raters if raters.count(name) > 1)
        raise ValueError(f"two files of one rater, {twice!r}; each needs a name of its own")
    methods = answers[0].methods
    first, second = methods if methods[0] == ours else methods[::-1]
    if ours not in methods:
        first, second = methods
    value = {first: 1.0, second: 0.0, "tie": 0.5}
    given = [a.preferred for a in answers]
    pairs = sorted({pair for one in given for pair in one})
    units = {pair: unit for one in answers for pair, unit in one.units.items()}
    of_pairs = average((pair, value[one[pair]]) for one in given for pair in pairs if pair in one)
    of_units = average((units[pair], wins) for pair, wins in of_pairs.items())
    shared = [
        a[pair] == b[pair]
        for i, a in enumerate(given)
        for b in given[:i]
        for pair in a.keys() & b.keys()
    ]
    return Tally(
        methods=(first, second),
        wins=bootstrap_mean([*of_units.values()]),
        n_pairs=len(pairs),
        n_units=len(of_units),
        n_ties=sum(choice == "tie" for one in given for choice in one.values()),
        raters=raters,
        alpha=agreement(given),
        same=sum(shared) / len(shared) if shared else None,
    )
