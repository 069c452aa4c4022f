"""What benches measured, prompt by prompt, in one small file: what a choice rests on.

A line of the table is a score of a bench: its suite, method and words, of which prompts and weights
it is (`of`), the score's name, and its values over prompts. The file is the table, compressed.
"""

import csv
import gzip
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from doodl_cli.bench.statistics import average
from doodl_cli.files import to_csv, write_whole
from doodl_cli.models.locate import hash_file

Scores = Mapping[str, np.ndarray]  # by name, one value a prompt


class BenchName(NamedTuple):
    """A bench of one method on one suite; `words` are the overrides that it was given."""

    suite: str
    method: str
    words: str
    of: str


@dataclass
class Measured:
    """The scores of benches by name, read from a file if it is there, and written to it."""

    path: Path
    found: dict[BenchName, dict[str, np.ndarray]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        if not self.path.exists():
            return
        text = gzip.decompress(self.path.read_bytes()).decode()
        for line in csv.DictReader(io.StringIO(text)):
            bench = BenchName(*(line[name] for name in BenchName._fields))
            values = np.array(line["values"].split(), dtype=float)
            self.found.setdefault(bench, {})[line["score"]] = values

    def has(self, bench: BenchName, names: Iterable[str]) -> bool:
        """Whether all of some scores of a bench are known."""
        return self.found.get(bench, {}).keys() >= set(names)

    def add(self, measured: Mapping[BenchName, Scores]) -> None:
        """Add the scores of benches, rounded as the file has them, and write the file."""
        with self.lock:
            for bench, scores in measured.items():
                rounded = {x: np.array([float(show(v)) for v in scores[x]]) for x in scores}
                self.found.setdefault(bench, {}).update(rounded)
            self.write()

    def write(self) -> None:
        """Write the file, the same for the same scores, whatever their order."""
        lines = [
            {**bench._asdict(), "score": name, "values": " ".join(map(show, values))}
            for bench in sorted(self.found)
            for name, values in sorted(self.found[bench].items())
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, gzip.compress(to_csv(lines).encode(), mtime=0))


def read_lines(bench: Path) -> list[dict[str, str]]:
    """Return the lines of the results.csv of a bench's folder, a picture each."""
    with (bench / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def over_prompts(lines: Iterable[Mapping[str, str]], score: str) -> dict[str, float]:
    """Return each prompt's mean of a score over its seeds; a class is a prompt of its own.

    `lines` are `read_lines`' of a method.
    """
    return average((line["prompt"] + line["target"], float(line[score])) for line in lines)


def shorten(value: float) -> float:
    """Return a mean as the files of results have it, with six digits."""
    return float(f"{value:.6g}")


def show(value: float) -> str:
    return f"{value:.5g}"


def fingerprint(paths: Iterable[Path]) -> str:
    """Return what tells files, and those of folders, by their content: 8 hexadecimal digits."""
    files = [file for path in paths for file in [path, *sorted(path.rglob("*"))] if file.is_file()]
    return sha256(b"".join(bytes.fromhex(hash_file(file)) for file in files)).hexdigest()[:8]
