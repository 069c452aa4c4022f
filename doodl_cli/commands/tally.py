"""`doodl bench tally FILE...`: win rates with intervals, and agreement between raters."""

import math

from doodl_cli.bench.tables import OURS
from doodl_cli.bench.tally import read_answers
from doodl_cli.bench.tally import tally as count_answers
from doodl_cli.errors import UserError

HELP = """\
doodl bench tally FILE...    win rates with intervals, and agreement between raters

A FILE is what the page of `doodl bench pairs` saves, one a rater, all of one page.
"""


def main(words: list[str]) -> None:
    """Print what the answers say. Raises UserError."""
    if set(words) & {"-h", "--help"}:
        print(HELP, end="")
        return
    if not words:
        raise UserError("tally: must be given files of answers, one a rater")
    answers = [read_answers(word) for word in words]
    try:
        found = count_answers(answers, OURS)
    except ValueError as error:
        raise UserError(f"tally: {error}") from error
    first, second = found.methods
    wins, n = found.wins, sum(len(given.preferred) for given in answers)
    print(f"{first} over {second}: {wins.mean:.1%} [{wins.low:.1%}, {wins.high:.1%}]")
    print(f"{found.n_pairs} pairs of {found.n_units} prompts, {n} answers, {found.n_ties} ties")
    print(f"raters: {', '.join(found.raters)}")
    if found.same is not None:
        alpha = "undefined" if math.isnan(found.alpha) else f"{found.alpha:.2f}"
        print(f"two raters agree on {found.same:.1%}; Krippendorff's alpha {alpha}")
