"""Many benches of `doodl`, each in a process of its own, several at a time, on the GPUs in turn.

A bench that was done with the same words is not done again, and one that was cut short goes on. On
SIGTERM, as `timeout` sends it, those that run save what they have and end.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from doodl_cli.files import read_values, write_whole

DONE = "done.json"
COSTS = {"universal": 4.0, "full_chain": 1.5}  # of methods, against the others': they decode more


@dataclass(frozen=True)
class Job:
    """A bench: its words and its folder. Those of the highest `cost`, in any unit, begin first."""

    folder: Path
    words: list[str]
    cost: float = 1.0

    @property
    def done(self) -> bool:
        """Whether the folder holds the finished bench of these words."""
        return read_values(self.folder / DONE, json.loads, list) == self.words

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    def read_lines(self) -> list[dict[str, str]]:
        """Return the lines of results.csv, a picture each."""
        with (self.folder / "results.csv").open(newline="") as file:
            return list(csv.DictReader(file))


@dataclass(frozen=True)
class Running:
    job: Job
    gpu: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    began: float


def run_jobs(jobs: Iterable[Job], n_together: int) -> None:
    """Carry out all jobs that are not done. Raises SystemExit, at the end, where some failed."""
    waiting = sorted((job for job in jobs if not job.done), key=lambda job: job.cost)
    n, gpus = len(waiting), list_gpus()
    running: list[Running] = []
    failed: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        while waiting or running:
            while waiting and len(running) < n_together:
                gpu = min(gpus, key=[one.gpu for one in running].count)
                running.append(start(waiting.pop(), gpu))
            time.sleep(0.1)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                if problem := finish(one):
                    failed.append(problem)
                print(f"{n - len(waiting) - len(running)} of {n}: {one.job.folder}, "
                      f"{time.monotonic() - one.began:.0f} s{problem and ', failed'}",
                      flush=True)  # fmt: skip
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()
            one.log.close()
        signal.signal(signal.SIGTERM, before)
    if failed:
        raise SystemExit("\n".join(failed))


def list_gpus() -> list[str]:
    """Return the names of the visible GPUs; where there is none, one without a name."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return list(names) or [""]


def start(job: Job, gpu: str) -> Running:
    """Start a bench on a GPU, with one thread."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    log = job.log.open("wb")
    command = [sys.executable, "-m", "doodl_cli", "bench", *job.words, f"output_dir={job.folder}"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": gpu}
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
    return Running(job, gpu, process, log, time.monotonic())


def finish(one: Running) -> str:
    """Mark a bench that succeeded as done; of another return its folder and last words."""
    one.log.close()
    if one.process.returncode == 0:
        write_whole(one.job.folder / DONE, json.dumps(one.job.words).encode())
        return ""
    lines = one.job.log.read_text(errors="replace").splitlines()
    return f"{one.job.folder}: {lines[-1] if lines else f'exit {one.process.returncode}'}"
