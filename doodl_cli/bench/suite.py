"""The rows of a suite: a prompt with its seed, its condition, and what can be checked."""

import json
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from doodl_cli.bench.checks import explain_unknown
from doodl_cli.bench.settings import Part, Suite
from doodl_cli.config import show
from doodl_cli.errors import UserError
from doodl_cli.files import read_values
from doodl_cli.models.fetch import cache_first, explain, quiet
from doodl_cli.requests import COLUMNS, Request, check_row, read_rows

TUNED = "tuned.json"
SEEDS_APART = 1000  # between the seeds of one row


@dataclass(frozen=True)
class Row:
    """`kind` groups rows of a suite; `check` is what bench.checks can read off a picture."""

    prompt: str
    seed: int
    negative_prompt: str | None = None
    target: str | int | None = None
    image: str | None = None
    kind: str | None = None
    check: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What is one prompt to the statistics: the text with its condition, whatever the seed."""
        image = Path(self.image).stem if self.image else None
        conditions = [str(x) for x in (self.target, image) if x is not None]
        return " | ".join([self.prompt, *conditions])


def packaged() -> Path:
    """Return the folder of the suites that come along."""
    return Path(str(resources.files("doodl_cli"))) / "assets/suites"


def find_file(part: Part, suite: Suite) -> Path:
    """Return the file of a part's prompts. Raises UserError where it is neither here nor cached."""
    if part.path is None and part.hub is None:
        raise UserError(
            "suite.path: missing; must be a file of prompts, as of `doodl run`, or .tsv"
        )
    if part.path is None:
        return find_on_hub(str(part.hub), suite.name)
    return find_beside(part.path)


def find_beside(path: str) -> Path:
    """Return a path of the package's suites, if it is one, else of the user's."""
    own = packaged() / path
    return own if own.exists() else Path(path).expanduser()


def find_on_hub(repository: str, suite: str) -> Path:
    """Return the table of a data set on the hub, from its cache or brought there."""
    from huggingface_hub import snapshot_download

    def download(offline: bool) -> str:
        return snapshot_download(
            repository,
            repo_type="dataset",
            allow_patterns=["*.csv", "*.tsv"],
            local_files_only=offline,
        )

    try:
        with quiet():
            folder = Path(cache_first(download))
        return next(path for path in sorted(folder.rglob("*.?sv")))
    except (OSError, ValueError, StopIteration) as error:
        raise UserError(
            f"suite={suite}: {repository} is not in the Hugging Face cache and cannot be fetched "
            f"({explain(error)}); must be there, or suite.path=FILE"
        ) from error


def read_suite(path: Path, n_prompts: int | None) -> list[Row]:
    """Return the rows of a file of prompts; of other columns than a suite's nothing is kept.

    With `n_prompts` those of the first prompts alone, and a seed of each. Raises UserError.
    """

    def check(row: dict[str, Any]) -> dict[str, Any] | str:
        checked = check_row({k: v for k, v in row.items() if k in COLUMNS}, path.parent)
        if isinstance(checked, str):
            return checked
        wanted = row.get("check") or {}
        if not isinstance(wanted, dict):
            return f"check={show(wanted)}: must be an object"
        if problem := explain_unknown(wanted):
            return problem
        checked.pop("id", None)
        return {**checked, "kind": row.get("kind"), "check": wanted}

    found = read_rows(str(path), "suite.path", check)
    rows = [Row(**{"seed": i, **row}) for i, row in enumerate(found)]
    first = {row.unit: row for row in reversed(rows)}
    units = dict.fromkeys(row.unit for row in rows)
    return rows if n_prompts is None else [first[unit] for unit in units][:n_prompts]


def read_tuned(part: str) -> dict[str, list[str]]:
    """Return the overrides that each method was tuned to for a part of the package's suites.

    scripts/tune_methods.py chose them, on other prompts and at the suite's budget.
    """
    found = read_values(packaged() / TUNED, json.loads).get(part, {})
    return {method: entry["overrides"] for method, entry in found.items()}


@cache
def read_packaged(name: str) -> dict[str, Any]:
    """Return the settings of the package's suite of a name, as its file in configs/ has them."""
    file = resources.files("doodl_cli.configs") / f"suite/{name}.yaml"
    return yaml.safe_load(file.read_text())


def make_requests(rows: list[Row], seed: int, negative_prompt: str) -> list[Request]:
    """Return the samples of a run: every row with its own seed and `seed` thousands more.

    `negative_prompt` is that of the rows that have none.
    """
    return [
        Request(
            number=i,
            name=f"{i:03}",
            prompt=row.prompt,
            negative_prompt=negative_prompt if row.negative_prompt is None else row.negative_prompt,
            seed=row.seed + SEEDS_APART * seed,
            target=row.target,
            image=row.image,
        )
        for i, row in enumerate(rows)
    ]
