"""What tests of the command line share: starting it, and reading what it leaves behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

needs_weights = pytest.mark.skipif(
    not (ROOT / "doodl_cli/assets/emoji/model_index.json").exists(),
    reason="the embedded weights are not in this checkout",
)


def start(*words, **options):
    """Start a command in a process of its own, which has one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "doodl_cli", *words]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment, **options)


def read_metadata(run):
    return json.loads((Path(run) / "metadata.json").read_text())


def read_history(run):
    return [json.loads(line) for line in (Path(run) / "history.jsonl").read_text().splitlines()]
