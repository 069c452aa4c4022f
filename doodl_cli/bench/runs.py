"""A bench as run directories: DIR/runs/PART/METHOD/SEED is one of `doodl run`.

A shard's has the shard in its name. What was begun goes on from its state, what is done is left.
"""

from dataclasses import dataclass
from pathlib import Path

from doodl_cli.bench.suite import Row
from doodl_cli.config import Config
from doodl_cli.requests import Request

SETTINGS = "bench.yaml"


@dataclass(frozen=True)
class Part:
    """A part of a suite, with its prompts read: `guidance` is what is optimised, `judge` decides.

    `real` is the folder of real pictures, if there is one.
    """

    name: str
    rows: list[Row]
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
