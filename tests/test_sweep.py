"""Sweeps: launchers, a search, jobs that fail or are put back in the queue, and where else runs
are written to."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from doodl_cli.cli import main
from doodl_cli.commands import gpus, sweep
from doodl_cli.commands.run import held_out_score
from tests.test_cli import needs_weights
from tests.test_resume import read_metadata, wait_for_lines

SMALL = ["run", "guidance=aesthetic", "prompt=x", "device=cpu"]
SMALL += ["sampler.n_steps=1", "optimizer.n_iters=1"]
JOBLIB = "hydra_plugins.hydra_joblib_launcher"
SUBMITIT = "hydra_plugins.hydra_submitit_launcher"
OPTUNA = "hydra_plugins.hydra_optuna_sweeper"

pytestmark = needs_weights


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["doodl"])
    return tmp_path


def start(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "doodl_cli", *words]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment)


def test_of_twelve_jobs_two_fail_and_ten_have_results(folder, capsys):
    """One is at fault before it starts, one fails in the middle of its work."""
    (folder / "loss.py").write_text(
        "import os\n"
        "def brightness(images, prompts):\n"
        "    if prompts == ['bad']:\n"
        "        raise RuntimeError('no such light\\nand more')\n"
        "    return -images.mean((1, 2, 3))\n"
    )
    words = ["run", "-m", "guidance=custom", "guidance.custom.target=loss.brightness", *SMALL[3:]]
    words += ['prompt="x","bad"', "seed=1,2,3,-1", "output_dir=sweep", "evaluate=[colourfulness]"]
    words += ["sampler.n_steps=1,2"]
    # 16 jobs: seed=-1 is at fault in 4, "bad" fails in the other 6.
    sys.path.insert(0, str(folder))
    try:
        assert main(words) == 1
    finally:
        sys.path.remove(str(folder))
    err = capsys.readouterr().err
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("doodl: ")]
    assert len(lines) == 11
    assert lines[-1].startswith("doodl: 10 of 16 jobs failed")
