"""A sweep: looked through before it starts, its jobs, and what became of them.

Hydra's sweepers drop the other jobs when one raises, and a job may run in another process or on
another machine. So a job never raises: it writes its failure to its own folder, where it is found
when all is over.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from doodl_cli.commands.apart import call_apart
from doodl_cli.commands.destination import check_free, find_destination, hydra_files, is_pattern
from doodl_cli.commands.gpus import take_gpu
from doodl_cli.commands.saved import check_package
from doodl_cli.config import show
from doodl_cli.errors import CannotWrite, JobsFailed, Killed, Terminated, UserError
from doodl_cli.files import read_values, write_whole
from doodl_cli.signals import TERMINATING, handled, terminate

SHARING = ("JoblibLauncher", "LocalLauncher")  # their jobs find a GPU of their own
POOLED = ("JoblibLauncher",)  # a pool that breaks where one of its processes is killed
OVER = ("done", "out of time")


@dataclass(frozen=True)
class Plan:
    """What is known of a sweep before it starts.

    `resumed` holds, for each job, the run that it goes on with, if any; it is empty where the
    sweeper chooses the jobs.
    """

    output_dir: Path
    pattern: bool
    resumed: list[Path | None]
    shares_gpus: bool
    pooled: bool


def plan_sweep(
    verb: str,
    compose: Callable[..., DictConfig],
    overrides: list[str],
    check: Callable[[DictConfig], Any],
) -> Plan:
    """Compose every job and check that something can run, before anything is written.

    A job whose values are out of range fails alone, when its turn comes; a sweep of such jobs only
    is refused here, and so is one with an unknown key or without the package of its launcher.
    """
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(
        overrides
    )
    # Intervals are what other sweepers draw from.
    known = [o for o in parsed if not o.is_sweep_override() or o.is_discrete_sweep()]
    (jobs,) = BasicSweeper.split_arguments(known, None)
    hydra = compose(jobs[0], return_hydra_config=True).hydra
    launcher, sweeper = str(hydra.launcher._target_), str(hydra.sweeper._target_)
    for group, target in (("launcher", launcher), ("sweeper", sweeper)):
        choice = f"hydra/{group}={hydra.runtime.choices[f'hydra/{group}']}"
        check_package(choice, ".".join(target.split(".")[:2]))
    if launcher.endswith("SlurmLauncher") and not shutil.which("srun"):
        raise UserError("hydra/launcher=submitit_slurm: needs a Slurm cluster; there is no srun")
    chosen_here = sweeper.endswith(".BasicSweeper")
    errors, resumed, places = [], [], set()
    for job in jobs:
        cfg = compose(job)
        places.add(str(OmegaConf.to_container(cfg, resolve=False)["output_dir"]))  # type: ignore[index, call-overload]
        resume = cfg.get("resume")
        resumed.append(None if resume is None else Path(str(resume)).expanduser().absolute())
        try:
            check(cfg)
            check_free(Path(cfg.output_dir), is_pattern(cfg))
        except UserError as error:
            errors.append(error)
        if not chosen_here and (verb != "run" or not cfg.evaluate):
            raise UserError(
                "hydra/sweeper: looks for the highest held-out score; must be given with `doodl "
                "run` and evaluate=NAME"
            )
    if len(errors) == len(jobs):
        raise errors[0]
    if len(places) > 1:
        raise UserError(
            f"output_dir={','.join(sorted(places))}: must be one folder; a sweep's jobs go to 0, "
            "1, ... in it"
        )
    return Plan(
        output_dir=Path(cfg.output_dir).expanduser().absolute(),
        pattern=is_pattern(cfg),
        resumed=resumed if chosen_here else [],
        shares_gpus=launcher.endswith(SHARING),
        pooled=launcher.endswith(POOLED),
    )


@dataclass(frozen=True)
class Job:
    """What a launcher runs for each job: the verb's task, whose failure is written down."""

    task: Callable[[DictConfig], float | None]
    shares_gpus: bool
    pooled: bool

    def __call__(self, cfg: DictConfig) -> float | None:
        if not self.pooled or sys.platform != "linux":
            return self.work(cfg)
        try:
            return call_apart(partial(self.work, cfg))
        except Killed as error:
            write_failure(find_destination(cfg), cfg, error)
        return None

    def work(self, cfg: DictConfig) -> float | None:
        """Run the job in this process."""
        if self.shares_gpus and cfg.device in ("auto", "cuda"):
            take_gpu()
        with terminable():
            try:
                return self.task(cfg)
            except Exception as error:
                write_failure(find_destination(cfg), cfg, error)
        return None


@contextmanager
def terminable() -> Iterator[None]:
    """Let the signals of a cluster unwind the stack, so that a run saves what it has.

    Below submitit the job is then put back in the queue, where it will find what it has saved; not
    after Slurm's SIGTERM, for Slurm itself requeues what it preempts, and cancels in the same way.
    """
    try:
        with handled(TERMINATING, terminate):
            yield
    except Terminated as error:
        executor = os.environ.get("SUBMITIT_EXECUTOR")
        if executor == "local" or (executor and error.args != (signal.SIGTERM,)):
            name = os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
            signal.raise_signal(getattr(signal, f"SIG{name}"))  # submitit's own: requeues, exits
        if executor:
            sys.exit(143)
        raise


def write_failure(path: Path, cfg: DictConfig, error: Exception) -> None:
    """Write what a job was and why it failed, unless its run directory says so already."""
    at_fault = isinstance(error, UserError)
    told = isinstance(error, UserError | CannotWrite | Killed)
    try:
        (path / ".hydra").mkdir(parents=True, exist_ok=True)
        found = read_metadata(path)
        if found.get("status") == "failed":
            return
        metadata = {
            **found,
            "status": "failed",
            "error": str(error) if told else f"{type(error).__name__}: {error}",
            "exit_code": 2 if at_fault else 1,
        }
        for name, text in hydra_files(cfg).items():
            write_whole(path / ".hydra" / name, text.encode())
        if not (path / "config.yaml").exists():
            write_whole(path / "config.yaml", OmegaConf.to_yaml(cfg).encode())
        if not told:
            with (path / "doodl.log").open("a", encoding="utf-8") as file:
                file.writelines(traceback.format_exception(error))
        write_whole(path / "metadata.json", f"{json.dumps(metadata, indent=2)}\n".encode())
    except (OSError, CannotWrite):  # a full disk, say; then this is all that there is
        traceback.print_exception(error)


@contextmanager
def collected(folder: Path, plan: Plan) -> Iterator[None]:
    """Run a sweep inside its folder, and name the jobs that failed.

    Raises UserError, and removes the folder, where the input of every job was at fault; JobsFailed
    where some failed; and what Hydra raises where there was no job.
    """
    broken = None
    try:
        yield
    except Exception as error:
        broken = error
    n_jobs = len(plan.resumed) or 1 + max((int(p.name) for p in find_jobs(folder)), default=-1)
    if broken and not find_jobs(folder) and not any(plan.resumed):
        shutil.rmtree(folder)
        raise broken
    resumed = plan.resumed or [None] * n_jobs
    results = [read_result(folder / str(i), run) for i, run in enumerate(resumed)]
    failed = {i: result for i, result in enumerate(results) if result.get("status") not in OVER}
    if failed and all(result.get("exit_code") == 2 for result in results):
        shutil.rmtree(folder)
        raise UserError(results[0]["error"])
    if failed or broken:
        names = name_jobs(folder, n_jobs)
        for i, result in failed.items():
            print(f"doodl: job {names[i]}: {explain_failure(result)}", file=sys.stderr)
        if not failed:
            assert broken is not None
            raise broken
        ended = f" ({type(broken).__name__})" if broken and len(failed) < n_jobs else ""
        raise JobsFailed(f"{len(failed)} of {n_jobs} jobs failed{ended}; all are in {folder}")
    print(folder)


def find_jobs(folder: Path) -> list[Path]:
    """Return the folders of a sweep's jobs."""
    return [path for path in folder.iterdir() if path.name.isdigit()]


def read_result(path: Path, resumed: Path | None) -> dict[str, Any]:
    """Return the metadata of a job; what goes on with a run writes there, unless it failed."""
    return read_metadata(path) or (read_metadata(resumed) if resumed else {})


def read_metadata(path: Path) -> dict[str, Any]:
    """Return what a run directory's metadata.json says, nothing where it cannot be read."""
    return read_values(path / "metadata.json", json.loads)


def explain_failure(metadata: dict[str, Any]) -> str:
    """Say in one line why a job has no result."""
    if not metadata:
        return "has not started, or was killed before it wrote anything"
    if "error" not in metadata:
        return f"was killed or goes on by itself (its status is {metadata.get('status')})"
    lines = str(metadata["error"]).splitlines()
    return show(lines[0]) if lines else "failed"


def name_jobs(folder: Path, n_jobs: int) -> list[str]:
    """Return each job's number with the settings that not all jobs have."""
    files = (folder / f"{i}/.hydra/overrides.yaml" for i in range(n_jobs))
    given: list[list[str]] = [read_values(file, yaml.safe_load, list) for file in files]
    common = set.intersection(*(set(words) for words in given if words)) if any(given) else set()
    own = [" ".join(word for word in words if word not in common) for words in given]
    return [f"{i} ({show(words)})" if words else str(i) for i, words in enumerate(own)]
