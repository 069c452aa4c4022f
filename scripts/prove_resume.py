"""Kill a run of 8 samples at 20 random moments; resumed, it ends like an undisturbed one.

    python scripts/prove_resume.py

While the run is going on, a thread of this script reads every file in its folder again and again,
and after every kill all are read once more: none may be half there, but for a log's last line.
"""

import json
import random
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from PIL import Image
from safetensors.torch import load

from tests.runs import start

N_KILLS = 20
LONGEST = 4.0  # seconds from the first write to a kill
WORDS = ["run", "guidance=colourfulness", "guidance.colourfulness.n_crops=2", "prompt=a red apple"]
WORDS += ["n_seeds=8", "batch_size=3", "sampler.n_steps=2", "optimizer.n_iters=6", "device=cpu"]


def read(path: Path) -> None:
    """Read a file as its kind asks for. Raises whatever is wrong with it."""
    content = path.read_bytes()
    if path.suffix in (".png", ".webp"):
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix == ".safetensors":
        load(content)
    elif path.suffix == ".json":
        json.loads(content)
    elif path.name == "history.jsonl":
        for line in content.splitlines(keepends=True):
            assert not line.endswith(b"\n") or json.loads(line)


def check(run: Path) -> int:
    """Read all files that are there under their own names; return how many."""
    n_files = 0
    for path in run.rglob("*"):
        if path.is_file() and not path.name.endswith(".part"):
            try:
                read(path)
                n_files += 1
            except FileNotFoundError:
                pass  # replaced or removed while it was looked for
    return n_files


class Watcher(threading.Thread):
    """Read every file of a folder again and again; `error` is what was wrong with one."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.folder, self.ended = run, threading.Event()
        self.n_files, self.error = 0, None

    def run(self) -> None:
        try:
            while not self.ended.wait(0.02):
                self.n_files += check(self.folder)
        except Exception as error:
            self.error = error

    def end(self) -> None:
        self.ended.set()
        self.join()
        if self.error is not None:
            raise self.error


def work_until_killed(run: Path, seconds: float) -> bool:
    """Go on with a run and kill it some time after it first writes. Say whether it was killed."""
    goes_on = (run / "config.yaml").exists()
    before = stamp(run)
    process = start(*["run", f"resume={run}"] if goes_on else [*WORDS, f"output_dir={run}"])
    while process.poll() is None and stamp(run) == before:
        time.sleep(0.01)
    try:
        _, err = process.communicate(timeout=seconds)
        assert process.returncode == 0, err
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True


def stamp(run: Path) -> int | None:
    """Return when the run last began to write."""
    path = run / "config.yaml"
    return path.stat().st_mtime_ns if path.exists() else None


def compare(run: Path, other: Path) -> int:
    """Compare every file of two runs, times aside; return how many there are."""
    names, others = (
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        for folder in (run, other)
    )
    assert names == others, set(names) ^ set(others)
    for name in names:
        a, b = (folder / name for folder in (run, other))
        if name.suffix in (".png", ".webp", ".safetensors"):
            assert a.read_bytes() == b.read_bytes(), name
        elif name.name == "history.jsonl":
            lines = [
                [json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()]
                for path in (a, b)
            ]
            assert lines[0] == lines[1]
        elif name.name == "metadata.json":
            metadata = [json.loads(path.read_text()) for path in (a, b)]
            for key in ("status", "samples", "round_trip_error", "n_finished"):
                assert metadata[0][key] == metadata[1][key], key
    return len(names)


def main() -> None:
    """Make the undisturbed run, then disturb another, and say what was found."""
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        whole, run = Path(folder, "whole"), Path(folder, "run")
        assert start(*WORDS, f"output_dir={whole}").wait() == 0
        watcher = Watcher(run)
        watcher.start()
        n_kills, n_read = 0, 0
        while n_kills < N_KILLS:
            if not work_until_killed(run, chance.uniform(0, LONGEST)):
                raise SystemExit(f"done after {n_kills} kills: give the run more to do")
            n_kills += 1
            n_read += check(run)
            history = run / "history.jsonl"
            n_lines = history.read_bytes().count(b"\n") if history.exists() else 0
            print(f"kill {n_kills}: {n_lines} lines of history", flush=True)
        assert start("run", f"resume={run}").wait() == 0
        watcher.end()
        n_files = compare(whole, run)
    print(f"{n_kills} kills; {n_files} files as those of an undisturbed run")
    print(f"read after the kills {n_read}, beside the run {watcher.n_files} files: all whole")


if __name__ == "__main__":
    main()
