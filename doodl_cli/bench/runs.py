"""A bench as run directories: DIR/runs/PART/METHOD/SEED is one of `doodl run`.

A shard's has the shard in its name. What was begun goes on from its state, what is done is left.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from doodl_cli.bench.suite import Row
from doodl_cli.config import Config
from doodl_cli.requests import Request

SETTINGS = "bench.yaml"
SHARD = re.compile(r"-\d+-of-(\d+)")  # the end of a folder's name


def list_shards(bench: Path) -> list[str | None]:
    """Return all shards of the division that a bench was begun in: [None] if in one piece.

    Without a run, the list is empty.
    """
    names = sorted(path.name for path in (bench / "runs").glob("*/*/*"))
    if not names:
        return []
    found = SHARD.search(names[0])
    return [f"{i}/{found[1]}" for i in range(int(found[1]))] if found else [None]


@dataclass(frozen=True)
class Part:
    """A part of a suite, with its prompts read: `guidance` is what is optimised, `judge` decides.

    `methods` are those of the bench that go with the guidance; `real` is the folder of real
    pictures, if there is one.
    """

    name: str
    rows: list[Row]
    methods: list[str]
    guidance: str
    judge: str
    real: Path | None


@dataclass(frozen=True)
class Run:
    """A method on a part's prompts with one of the bench's seeds; `config` spends the budget."""

    part: Part
    method: str
    seed: int
    config: Config
    requests: list[Request]

    @property
    def name(self) -> str:
        shard = f"-{self.config.shard.replace('/', '-of-')}" if self.config.shard else ""
        return f"{self.part.name}/{self.method}/{self.seed}{shard}"

    def folder(self, bench: Path) -> Path:
        return bench / "runs" / self.name
