"""Make benches of `doodl` one after another in this process, as scripts/job_pool.py sends them.

A line of JSON on stdin is a bench: its log, then its words. Its exit code is the line that answers.
To import and to start CUDA takes longer than many a bench, and is done once.
"""

import gc
import json
import os
import sys
from pathlib import Path


def main() -> None:
    """Answer until there is no more; a bench that a signal ended is the last."""
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        log, *words = json.loads(line)
        code = bench(Path(log), words)
        print(code, file=answers, flush=True)
        if code > 128:
            break
        free()


def bench(log: Path, words: list[str]) -> int:
    """Make a bench, with all that it prints in its log, and return its exit code."""
    from doodl_cli.cli import main

    with log.open("wb") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    code = main(["bench", *words])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def free() -> None:
    """Give back the memory of a bench, which other processes may need."""
    gc.collect()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
