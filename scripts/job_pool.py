"""Many benches of `doodl`, several at a time in processes of their own, on the GPUs in turn.

A bench that was done with the same words is not done again, and one that was cut short goes on. On
SIGTERM, as `timeout` sends it, those that run save what they have and end.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import LifoQueue
from threading import Lock
from typing import Self

from doodl_cli.files import read_values, write_whole

DONE = "done.json"
COSTS = {"universal": 4.0, "full_chain": 1.5}  # of methods, against the others': they decode more
WORKER = [sys.executable, str(Path(__file__).with_name("bench_worker.py"))]


@dataclass(frozen=True)
class Job:
    """A bench: its words and folder. Of jobs that are run together the costliest begin first."""

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


@dataclass
class Worker:
    """A process that makes benches on a GPU, with one thread; it begins with its first job."""

    gpu: str
    process: subprocess.Popen[str] | None = None
    stopped: bool = False
    lock: Lock = field(default_factory=Lock)

    def make(self, job: Job) -> str:
        """Make a bench and mark it as done; of one that failed return its folder and last words."""
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        code = self.ask([str(job.log), *job.words, f"output_dir={job.folder}"])
        if code == 0:
            write_whole(job.folder / DONE, json.dumps(job.words).encode())
            return ""
        lines = job.log.read_text(errors="replace").splitlines() if job.log.exists() else []
        return f"{job.folder}: {lines[-1] if lines else f'exit {code}'}"

    def ask(self, line: list[str]) -> int:
        """Send a line to the process and return its answer; its own exit code, if it ends."""
        with self.lock:
            if self.stopped:
                return 128 + signal.SIGTERM
            if self.process is None or self.process.poll() is not None:
                self.process = self.start()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(line), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            return self.process.wait() or 1
        if int(answer) > 128:  # a signal, and the process ends, too
            self.process.wait()
        return int(answer)

    def start(self) -> subprocess.Popen[str]:
        """Start the process."""
        env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": self.gpu}
        pipe = subprocess.PIPE
        return subprocess.Popen(WORKER, stdin=pipe, stdout=pipe, text=True, env=env)

    def stop(self) -> None:
        """Tell the process, once, to save what it has and to end; there will be no other."""
        with self.lock:
            self.stopped = True
            if self.process is not None:
                self.process.terminate()


class Pool:
    """Processes that carry out jobs while they last, for several threads, if need be."""

    def __init__(self, n_together: int) -> None:
        gpus = list_gpus()
        self.workers = [Worker(gpus[k % len(gpus)]) for k in range(n_together)]
        self.free: LifoQueue[Worker] = LifoQueue()  # one that has begun before a fresh one
        for worker in reversed(self.workers):
            self.free.put(worker)
        self.threads = ThreadPoolExecutor(n_together)

    def __enter__(self) -> Self:
        self.before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        for worker in self.workers:
            worker.stop()
        for worker in self.workers:
            if worker.process is not None:
                worker.process.wait()
        signal.signal(signal.SIGTERM, self.before)

    def run(self, jobs: Iterable[Job]) -> None:
        """Carry out all jobs that are not done. Raises SystemExit, at the end, if some failed."""
        waiting = sorted((job for job in jobs if not job.done), key=lambda job: -job.cost)
        futures = [self.threads.submit(self.make, job) for job in waiting]
        failed = [problem for future in futures if (problem := future.result())]
        if failed:
            raise SystemExit("\n".join(failed))

    def make(self, job: Job) -> str:
        """Carry out a job; of one that failed return its folder and last words."""
        worker, began = self.free.get(), time.monotonic()
        try:
            problem = worker.make(job)
        finally:
            self.free.put(worker)
        seconds = time.monotonic() - began
        print(f"{job.folder}, {seconds:.0f} s{problem and ', failed'}", flush=True)
        return problem


def list_gpus() -> list[str]:
    """Return the names of the visible GPUs; where there is none, one without a name."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(torch.cuda.device_count()))
    return list(names) or [""]
