"""Tune each method's main strength for each suite of the embedded model, at the suite's budget.

The prompts are tuning/'s, which no suite has, and the figure is the held-out score that decides
there. For baselines and for `doodl` alike, the best of a grid is written with the whole sweep to
doodl_cli/assets/suites/tuned.json, which `doodl bench` reads.

    python scripts/tune_methods.py [--out build/tuning] [--suites complex ...] [--methods doodl ...]

The benches stay in the folder: what was cut short goes on, what is done is read.
"""

import argparse
import csv
import json
from pathlib import Path

import yaml

from doodl_cli.bench.suite import TUNED, packaged
from doodl_cli.cli import main as doodl
from doodl_cli.config import GUIDED
from doodl_cli.files import read_values, write_whole

SUITES = ("complex", "vocabulary", "references", "aesthetic")
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
GRIDS = {
    "doodl": [f"optimizer.clip={value}" for value in (1e-3, 3e-3, 1e-2, 2e-2, 4e-2)],
    **{method: [f"method.strength={value}" for value in STRENGTHS] for method in GUIDED},
}


def read_judge(suite: str) -> str:
    """Return the score that decides in a suite."""
    path = Path(__file__).parents[1] / f"configs/suite/{suite}.yaml"
    return yaml.safe_load(path.read_text())["parts"][suite]["judge"]


def measure(suite: str, method: str, override: str, out: Path, words: list[str]) -> float:
    """Return the mean of the deciding score with one setting."""
    folder = out / suite / method / override
    command = ["bench", f"suite={suite}", f"suite.parts.{suite}.path=tuning/{suite}.jsonl"]
    command += [f"suite.parts.{suite}.real=null", f"methods=[{method}]", override, *words]
    if doodl([*command, f"output_dir={folder}"]):
        raise SystemExit(f"{suite} {method} {override}: failed")
    with (folder / "results.csv").open(newline="") as file:
        values = [float(line[read_judge(suite)]) for line in csv.DictReader(file)]
    return sum(values) / len(values)


def main() -> None:
    """Measure every setting of every grid, and write the best ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/tuning"))
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES)
    parser.add_argument("--methods", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--words", nargs="*", default=[], help="further words of `doodl bench`")
    args = parser.parse_args()
    path = packaged() / TUNED
    tuned = read_values(path, json.loads)
    for suite in args.suites:
        for method in args.methods:
            if method == "noise_aware" and suite != "vocabulary":
                continue  # it is a classifier itself
            sweep = {x: measure(suite, method, x, args.out, args.words) for x in GRIDS[method]}
            best = max(sweep, key=lambda override: sweep[override])
            entry = {"overrides": [best], "score": read_judge(suite), "sweep": sweep}
            tuned.setdefault(suite, {})[method] = entry
            write_whole(path, f"{json.dumps(tuned, indent=1)}\n".encode())
            print(suite, method, best, sweep, flush=True)


if __name__ == "__main__":
    main()
