"""Make one bench with several GPUs: its parts, methods and seeds in processes of their own.

Shards divide the prompts, and with them what a GPU computes at a time; here a run keeps its
batches. The runs are put together to the bench's folder, whose tables are then made as ever.

    python scripts/bench_on_gpus.py suite=embedded output_dir=build/bench [--jobs 4]

Cut short, the same command goes on. Prints the seconds of each run, and of all, which is what one
GPU would take with one job a GPU.
"""

import argparse
import itertools
import json
import os
import shutil
from pathlib import Path

from job_pool import COSTS, Job, Pool

from doodl_cli.commands.bench import Plan, begin, make_plan
from doodl_cli.commands.bench import main as bench


def make_jobs(plan: Plan, words: list[str], folder: Path) -> dict[str, Job]:
    """Return a bench of each run of a plan, by its place in a bench's folder of runs."""
    keys = ("output_dir", "methods", "seeds")
    given = [word for word in words if word.partition("=")[0] not in keys]
    jobs = {}
    for part in plan.parts:
        others = [f"~suite.parts.{other.name}" for other in plan.parts if other is not part]
        for method, seed in itertools.product(part.methods, plan.bench.seeds):
            own = [*given, *others, f"methods=[{method}]", f"seeds=[{seed}]"]
            cost = COSTS.get(method, 1.0) * len(part.rows)
            place = f"{part.name}/{method}/{seed}"
            jobs[place] = Job(folder / place, own, cost)
    return jobs


def put_together(jobs: dict[str, Job], path: Path) -> None:
    """Link the runs of all benches into one bench's folder, those that are not there yet."""
    for place, job in jobs.items():
        to = path / "runs" / place
        if not to.exists():
            part = to.with_name(f".{to.name}")  # so that half a run has another name
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(job.folder / "runs" / place, part, copy_function=os.link)
            part.rename(to)


def read_seconds(path: Path) -> dict[str, float]:
    """Return the seconds of every run of a bench, by its place."""
    found = {}
    for file in sorted((path / "runs").glob("*/*/*/metadata.json")):
        place = file.parent.relative_to(path / "runs")
        found[str(place)] = json.loads(file.read_text())["cost"]["seconds"]
    return found


def main() -> None:
    """Make the runs, and then the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="+", help="of `doodl bench`, output_dir among them")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    args = parser.parse_args()
    if not any(word.startswith("output_dir=") for word in args.words):
        parser.error("output_dir: missing; must be the bench's folder")
    plan = make_plan(args.words)
    path = Path(plan.bench.output_dir).absolute()
    jobs = make_jobs(plan, args.words, path.with_name(f"{path.name}-apart"))
    begin(plan)
    with Pool(args.jobs) as pool:
        pool.run(jobs.values())
    put_together(jobs, path)
    bench([f"resume={path}"])
    seconds = read_seconds(path)
    for place, spent in seconds.items():
        print(f"{place}: {spent:.0f} s")
    print(f"all: {sum(seconds.values()):.0f} s")


if __name__ == "__main__":
    main()
