"""Measure a run of 1,000 prompts, one iteration each: its memory, and what is not the model's time.

    PYTHONPATH=. python scripts/measure_many.py [FOLDER] [WORD ...]

The run is left in FOLDER, if one is given; words as sampler.n_steps=12 change it. Linux alone says
how much memory a process has. The page is opened in Chromium, where there is one.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.browser import CHROMIUM, browser

N_PROMPTS = 1000
BATCH = 8
WORDS = ["run", "guidance=colourfulness", f"batch_size={BATCH}", "device=cpu"]
WORDS += ["sampler.n_steps=4", "optimizer.n_iters=1", "evaluate=symmetry"]
COMMAND = [sys.executable, "-m", "doodl_cli"]


def memory(process: int) -> float:
    """Return the memory of a process in MB; 0 where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return 0.0
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def watch(process: subprocess.Popen[bytes], run: Path) -> dict[int, float]:
    """Return the memory after each finished batch, while a run goes on."""
    found: dict[int, float] = {}
    history = run / "history.jsonl"
    while process.poll() is None:
        time.sleep(0.5)
        if history.exists():
            n_batches = history.read_bytes().count(b"\n") // (2 * BATCH)
            found[n_batches] = max(found.get(n_batches, 0), memory(process.pid))
    return {n: value for n, value in found.items() if n > 0 and value}


def outside_the_model(run: Path) -> tuple[float, float]:
    """Return the seconds of the run, loading left out, and those outside the iterations."""
    lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    first_of_batch = [line for line in lines if line["sample"] % BATCH == 0]
    inside = sum(line["seconds"] for line in first_of_batch)  # a batch's samples share them
    total = json.loads((run / "metadata.json").read_text())["cost"]["seconds"]
    return total, total - inside


def open_page(file: Path, profile: str) -> float:
    """Return how long a browser takes to open a page, to the first frame that it shows of it."""
    with browser(profile) as page:
        page.call("Page.enable")
        began = time.monotonic()
        page.call("Page.navigate", url=file.absolute().as_uri())
        page.ask("document.readyState === 'complete' || new Promise(r => onload = () => r(true))")
        page.ask("new Promise(r => requestAnimationFrame(() => setTimeout(() => r(0))))")
        return time.monotonic() - began


def main() -> None:
    """Run, watch and print."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary)
        folder.mkdir(exist_ok=True)
        prompts, run = folder / "prompts.txt", folder / "run"
        prompts.write_text("".join(f"a red apple, number {i}\n" for i in range(N_PROMPTS)))
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        words = [*COMMAND, *WORDS, *sys.argv[2:], f"prompts={prompts}", f"output_dir={run}"]
        began = time.monotonic()
        process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
        found = watch(process, run)
        assert process.returncode == 0
        wall = time.monotonic() - began
        for n in sorted(found)[:: max(1, len(found) // 10)]:
            print(f"after batch {n:3}: {found[n]:.0f} MB")
        total, outside = outside_the_model(run)
        print(f"{total:.0f} s, of which {outside:.0f} s outside the iterations", end=" ")
        print(f"({outside / total:.1%}, {outside / N_PROMPTS:.3f} s a sample)")
        print(f"{wall - total:.0f} s before and after: imports, loading, the page")
        began = time.monotonic()
        subprocess.run([*COMMAND, "report", run], check=True, stdout=subprocess.DEVNULL)
        size = (run / "report.html").stat().st_size / 1e6
        print(f"doodl report: {time.monotonic() - began:.1f} s, {size:.1f} MB")
        if CHROMIUM:
            print(f"opened in {open_page(run / 'report.html', f'{temporary}/profile'):.1f} s")
        began = time.monotonic()
        files = [path.stat().st_size for path in run.rglob("*") if path.is_file()]
        seconds = time.monotonic() - began
        print(f"{len(files)} files, {sum(files) / 1e6:.0f} MB, listed in {seconds:.1f} s")


if __name__ == "__main__":
    main()
