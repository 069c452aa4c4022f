"""Start two identical commands in the same instant, 20 times: 40 folders, each with a whole run.

    python scripts/prove_distinct.py

Their output_dir names the day alone, so that both of a pair, and all pairs, ask for one name.
"""

import json
import tempfile
from pathlib import Path

from tests.runs import start

N_PAIRS = 20
WORDS = ["run", "guidance=colourfulness", "prompt=x", "evaluate=[]", "device=cpu"]
WORDS += ["sampler.n_steps=1", "optimizer.n_iters=1", "output_dir=${now:%Y}"]


def main() -> None:
    """Run the pairs and count what they printed as their folders."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(N_PAIRS):
            pair = [start(*WORDS, cwd=folder) for _ in range(2)]
            outputs = [process.communicate()[0] for process in pair]
            assert [process.returncode for process in pair] == [0, 0]
            runs += [Path(output.splitlines()[-1]) for output in outputs]
        for run in runs:
            assert json.loads((run / "metadata.json").read_text())["status"] == "done"
            assert len((run / "history.jsonl").read_text().splitlines()) == 2
    print(f"{len(runs)} commands, {len(set(runs))} run directories")


if __name__ == "__main__":
    main()
