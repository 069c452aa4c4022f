"""`doodl bench pairs DIR`: a page that shows blind pairs of two methods' pictures."""

import json
import sys
from pathlib import Path

import yaml

from doodl_cli.bench.pairs import Pair, draw_pairs_page
from doodl_cli.bench.runs import SETTINGS
from doodl_cli.bench.suite import Row
from doodl_cli.config import is_whole, show
from doodl_cli.errors import UserError
from doodl_cli.files import read_values, write_whole

PAGE = "pairs.html"
KEYS = ("methods", "part", "n", "seed")

HELP = """\
doodl bench pairs DIR methods=a,b    write DIR/pairs.html: blind pairs of two methods' pictures

  methods=a,b    the two methods; needed where the bench has more
  part=NAME      the pairs of one part alone
  n=N            as many pairs, drawn at random
  seed=0         shuffles the pairs and their sides

The page needs no network. Answers by key or click stay in the browser; its button saves them.
"""


def main(words: list[str]) -> None:
    """Write the page and print where it is. Raises UserError and CannotWrite."""
    if set(words) & {"-h", "--help"}:
        print(HELP, end="")
        return
    folders = [word for word in words if "=" not in word]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    for key in given:
        if key not in KEYS:
            raise UserError(f"{key}={given[key]}: unknown key; must be one of {', '.join(KEYS)}")
    if len(folders) != 1:
        raise UserError("pairs: must be given the folder of one bench")
    folder = Path(folders[0]).expanduser()
    methods = choose_methods(folder, given.get("methods"))
    pairs = find_pairs(folder, methods, given.get("part"))
    n, seed = read_number(given, "n", len(pairs), 1), read_number(given, "seed", 0, 0)
    page, n_equal = draw_pairs_page(pairs, seed, n)
    write_whole(folder / PAGE, page.encode())
    if n_equal:
        print(f"doodl: {n_equal} pairs are equal pictures and not asked about", file=sys.stderr)
    print(folder / PAGE)


def read_number(given: dict[str, str], key: str, default: int, least: int) -> int:
    """Return a key's whole number. Raises UserError."""
    value = yaml.safe_load(given[key]) if key in given else default
    if not is_whole(value) or value < least:
        raise UserError(f"{key}={given[key]}: must be a whole number from {least}")
    return value


def choose_methods(folder: Path, given: str | None) -> tuple[str, str]:
    """Return the two methods that are compared. Raises UserError."""
    saved = read_values(folder / SETTINGS, yaml.safe_load)
    there = list(saved.get("bench", {}).get("methods", []))
    if not there:
        raise UserError(f"{folder}: must be the folder of a bench (no readable {SETTINGS})")
    chosen = there if given is None else given.strip("[]").replace(" ", "").split(",")
    if len(chosen) != 2 or len(set(chosen)) < 2 or set(chosen) - set(there):
        what = "missing" if given is None else f"{show(given)}"
        raise UserError(f"methods={what}: must be two of {', '.join(there)}, as in methods=a,b")
    return chosen[0], chosen[1]


def find_pairs(folder: Path, methods: tuple[str, str], part: str | None) -> list[Pair]:
    """Return every sample that both methods have finished. Raises UserError."""
    parts = sorted(path.name for path in (folder / "runs").glob("*"))
    if part is not None and part not in parts:
        raise UserError(f"part={part}: must be one of {', '.join(parts)}")
    pairs = []
    for name in parts if part is None else [part]:
        found = [find_pictures(folder / "runs" / name / method) for method in methods]
        for key, row in found[0].items():
            if key in found[1]:
                pictures = {m: f[key][1] for m, f in zip(methods, found, strict=True)}
                image = None if row[0].image is None else Path(row[0].image)
                pairs.append(
                    Pair(f"{name}/{key}", f"{name}/{row[0].unit}", ask(row[0]), pictures, image)
                )
    if not pairs:
        raise UserError(f"{folder}: holds no sample that {' and '.join(methods)} both finished")
    return pairs


def find_pictures(folder: Path) -> dict[str, tuple[Row, Path]]:
    """Return by seed and number the row and the best picture of every finished run."""
    found = {}
    for run in sorted(folder.glob("*")):
        if read_values(run / "metadata.json", json.loads).get("status") != "done":
            continue
        for line in (run / "prompts.jsonl").read_text("utf-8").splitlines():
            request = json.loads(line)
            row = Row(request["prompt"], request["seed"], None, request["target"], request["image"])
            picture = run / "samples" / request["name"] / "best.png"
            found[f"{row.seed}-{request['number']}"] = row, picture
    return found


def ask(row: Row) -> str:
    """Return what a rater is asked about a row."""
    if row.target is not None:
        return f"Which picture shows {row.target} better? ({row.prompt})"
    if row.image is not None:
        return f"Which picture is nearer to the reference, and still “{row.prompt}”?"
    return f"Which picture is better for “{row.prompt}”?"
