"""history.jsonl read back: the curves of a run's samples."""

import json
from pathlib import Path

HELD_OUT = "held_out."  # before the names of scores that are not optimised
FILE = "history.jsonl"

Curves = dict[str, list[tuple[int, float]]]  # name to (iteration, value) pairs


def read_curves(run: Path) -> dict[int, Curves]:
    """Return, by each sample's number, its loss and scores over the iterations.

    What is not finite is left out, and so is half a line.
    """
    curves: dict[int, Curves] = {}
    path = run / FILE
    if not path.exists():
        return curves
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            held_out = {
                f"{HELD_OUT}{name}": value
                for name, value in line["evaluate"].items()
                if name not in line["guidance"]
            }
            values = {"loss": line["loss"], **line["guidance"], **held_out}
            of_sample = curves.setdefault(line["sample"], {})
            for name, value in values.items():
                if value is not None:
                    of_sample.setdefault(name, []).append((line["iteration"], value))
    return curves
