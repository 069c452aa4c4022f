"""Sweeps: launchers, a search, jobs that fail or are put back in the queue, and where else runs
are written to."""

import csv
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from doodl_cli.cli import main
from doodl_cli.commands.run import held_out_score
from tests.runs import needs_weights, read_history, read_metadata, start
from tests.test_resume import wait_for_lines

SMALL = ["run", "guidance=colourfulness", "prompt=x", "device=cpu", "sampler.n_steps=1"]
SMALL += ["optimizer.n_iters=1", "evaluate=[symmetry]"]
JOBLIB = "hydra_plugins.hydra_joblib_launcher"
SUBMITIT = "hydra_plugins.hydra_submitit_launcher"
OPTUNA = "hydra_plugins.hydra_optuna_sweeper"

pytestmark = needs_weights


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["doodl"])
    return tmp_path


def test_of_twelve_jobs_two_fail_and_ten_have_results(folder, capsys):
    seeds = "seed=0,1,2,-1,4,5,6,7,8,9,1.5,11"
    assert main([*SMALL, "-m", seeds, "output_dir=sweep"]) == 1
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("doodl: ")]
    cause = "must be a whole number from 0, or a list: [0,1]"
    assert lines == [
        f"doodl: job 3 (seed=-1): seed=-1: {cause}",
        f"doodl: job 10 (seed=1.5): seed=1.5: {cause}",
        f"doodl: 2 of 12 jobs failed; all are in {folder / 'sweep'}",
    ]
    assert "Traceback" not in err
    assert {path.name for path in Path("sweep").glob("*/samples")} == {"samples"}
    assert len(list(Path("sweep").glob("*/samples"))) == 10
    assert main(["report", "sweep"]) == 0
    table = list(csv.DictReader(Path("sweep/results.csv").read_text().splitlines()))
    assert [row["status"] for row in table].count("done") == 10
    assert len(table) == 12
    assert [row["cause"] for row in table if row["status"] == "failed"] == [
        f"seed=-1: {cause}",
        f"seed=1.5: {cause}",
    ]
    assert "seed=1.5" in Path("sweep/report.html").read_text(encoding="utf-8")


def test_a_job_that_breaks_is_named_and_keeps_its_traceback(folder, capsys, monkeypatch):
    Path("loss.py").write_text(
        "def darkness(images, prompts):\n"
        "    if prompts == ['bad']:\n"
        "        raise RuntimeError('no such light')\n"
        "    return images.mean((1, 2, 3))\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    words = [*SMALL[:1], *SMALL[3:], "guidance=custom", "guidance.custom.target=loss.darkness"]
    assert main([*words, "-m", 'prompt="bad","x"', "output_dir=sweep"]) == 1
    err = capsys.readouterr().err
    assert 'doodl: job 0 (prompt="bad"): RuntimeError: no such light' in err
    assert "Traceback" not in err
    assert "Traceback" in Path("sweep/0/doodl.log").read_text()
    assert read_metadata(Path("sweep/1"))["status"] == "done"


def test_a_sweep_whose_every_job_is_at_fault_leaves_nothing(folder, capsys):
    """device=cuda:9 is found out only when the jobs have started."""
    assert main([*SMALL, "-m", "device=cuda:8,cuda:9", "output_dir=sweep"]) == 2
    err = capsys.readouterr().err
    assert [line for line in err.splitlines() if "doodl: " in line] == [
        "doodl: device=cuda:8: not on this machine; must be auto, cpu"
    ] or "cuda:0" in err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["hydra/launcher=jobs"], "hydra/launcher=jobs: must be one of basic, joblib, ray"),
        (["hydra/sweeper=grid"], "hydra/sweeper=grid: must be one of basic, optuna"),
        (["hydra/sweeper=optuna", "evaluate=[]"], "held-out score; must be given"),
        (['output_dir="a","b"', "seed=1,2"], "output_dir=a,b: must be one folder"),
        (["hydra/launcher=submitit_slurm"], "needs a Slurm cluster; there is no srun"),
        (["log=tensorbord"], "log=tensorbord: must be tensorboard or wandb"),
    ],
)
def test_bad_choices_get_one_line(folder, capsys, monkeypatch, words, line):
    if "hydra/sweeper=optuna" in words:
        pytest.importorskip(OPTUNA)
    if "hydra/launcher=submitit_slurm" in words:
        pytest.importorskip(SUBMITIT)
        monkeypatch.setenv("PATH", "")
    assert main([*SMALL, "-m", *words]) == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("word", "package"),
    [
        ("hydra/launcher=joblib", "hydra-joblib-launcher"),
        ("hydra/launcher=submitit_slurm", "hydra-submitit-launcher"),
        ("hydra/launcher=ray", "hydra-ray-launcher"),
        ("hydra/sweeper=optuna", "hydra-optuna-sweeper"),
        ("log=tensorboard", "tensorboard"),
        ("log=[wandb]", "wandb"),
    ],
)
def test_an_absent_package_is_named(folder, capsys, monkeypatch, word, package):
    find = importlib.util.find_spec
    absent = package.replace("-", "_")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if absent in name else find(name)
    )
    assert main([*SMALL, "-m", word]) == 2
    assert f"its package is missing; pip install {package}\n" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_joblib_runs_jobs_in_processes_of_their_own(folder, capfd):
    pytest.importorskip(JOBLIB)
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,-1"]
    process = start(*SMALL, "-m", *words, "output_dir=sweep")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "doodl: job 1 (seed=-1): seed=-1: must be" in err
    assert "Warning" not in err
    assert read_metadata(Path("sweep/0"))["status"] == "done"


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and /proc says which")
def test_a_killed_job_of_joblib_ends_alone_and_can_be_gone_on_with(folder, capsys):
    """As by the system where memory runs out: the process that does the work is killed."""
    pytest.importorskip(JOBLIB)
    words = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "optimizer.n_iters=8"]
    process = start(*SMALL, "-m", *words, "seed=0,1,2", "output_dir=sweep")
    wait_for_lines(process, folder / "sweep/1", 2)
    os.kill(process_that_writes_to(folder / "sweep/1"), signal.SIGKILL)
    _, err = process.communicate(timeout=180)
    assert process.returncode == 1, err
    assert [line for line in err.splitlines() if line.startswith("doodl: ")] == [
        "doodl: job 1 (seed=1): killed by SIGKILL",
        f"doodl: 1 of 3 jobs failed; all are in {folder / 'sweep'}",
    ]
    assert main(["report", "sweep"]) == 0
    table = list(csv.DictReader(Path("sweep/results.csv").read_text().splitlines()))
    assert [row["status"] for row in table] == ["done", "failed", "done"]
    assert table[1]["cause"] == "killed by SIGKILL"
    assert main(["run", "resume=sweep/1"]) == 0
    assert read_metadata(Path("sweep/1"))["status"] == "done"
    assert len(read_history(Path("sweep/1"))) == 9


def process_that_writes_to(run):
    """Return the process that has locked a run directory."""
    inode = str(run.stat().st_ino)
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, _, _, process, file, *_ = line.split()
        if kind == "FLOCK" and file.rpartition(":")[2] == inode:
            return int(process)
    raise AssertionError(f"no process has locked {run}")


def test_processes_take_different_gpus(folder):
    """More processes than GPUs are spread evenly."""
    code = (
        "import os, sys; from doodl_cli.commands.gpus import take_gpu; take_gpu(); "
        "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "3,5", "TMPDIR": str(folder)}
    processes = []
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=-1, stdout=-1, text=True, env=environment
        )
        processes.append((process, process.stdout.readline().strip()))
    for process, _ in processes:
        process.communicate(timeout=60)
    assert [taken for _, taken in processes] == ["3", "5", "3", "5"]


def test_a_terminated_submitit_job_saves_and_is_requeued_and_finishes(folder):
    pytest.importorskip(SUBMITIT)
    n_iters = 30
    words = [f"optimizer.n_iters={n_iters}", "hydra/launcher=submitit_local", "output_dir=sweep"]
    process = start(*SMALL, "-m", *words)
    wait_for_lines(process, folder / "sweep/0", 5)
    (job,) = Path("sweep/.submitit").glob("*/*_submitted.pkl")
    os.kill(
        int(job.parent.name), signal.SIGTERM
    )  # the process that watches over the job passes it on
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert read_metadata(Path("sweep/0"))["status"] == "done"
    assert "interrupted" in Path("sweep/0/doodl.log").read_text()
    history = read_history(Path("sweep/0"))
    assert [line["iteration"] for line in history] == list(range(n_iters + 1))


def test_optuna_finds_the_settings_with_the_highest_held_out_score(folder, capsys):
    pytest.importorskip(OPTUNA)
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "output_dir=sweep"]
    assert main([*SMALL, "-m", *words]) == 0
    found = yaml.safe_load(Path("sweep/optimization_results.yaml").read_text())
    scores = [
        read_metadata(path)["samples"][0]["evaluate"]["best"]["symmetry"]
        for path in (Path("sweep/0"), Path("sweep/1"))
    ]
    assert found["best_value"] == pytest.approx(max(scores))
    names = {f"optimizer.{name}" for name in ("lr", "clip", "momentum")}
    assert found["best_params"].keys() == names
    best = yaml.safe_load(Path(f"sweep/{scores.index(max(scores))}/config.yaml").read_text())
    assert best["optimizer"]["lr"] == found["best_params"]["optimizer.lr"]


def test_the_held_out_score_is_the_first_one_and_the_mean_over_samples():
    class config:
        evaluate = {"a": None, "b": None}  # noqa: RUF012

    samples = [{"evaluate": {"best": {"a": a, "b": 7.0}}} for a in (1.0, 2.0)]
    assert held_out_score(config, samples) == 1.5
    assert held_out_score(config, [*samples, {"evaluate": {"best": {"a": None}}}]) is None
    config.evaluate = {}
    assert held_out_score(config, samples) is None


def test_tensorboard_gets_every_iteration_and_the_grid(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["optimizer.n_iters=2", "seed=[1,2]", "batch_size=1", "log=tensorboard"]
    assert main([*SMALL, *words, "output_dir=run"]) == 0
    events = EventAccumulator("run/tensorboard").Reload()
    values = events.Scalars("guidance/colourfulness")
    assert [value.step for value in values] == [0, 1, 2, 3, 4, 5]
    history = read_history(Path("run"))
    expected = [line["guidance"]["colourfulness"] for line in history]
    assert [value.value for value in values] == pytest.approx(expected)
    assert [image.step for image in events.Images("grid")] == [2, 5]


def test_wandb_takes_a_run_without_a_network(folder, monkeypatch):
    pytest.importorskip("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "doodl_cli", *SMALL, "log=wandb", "output_dir=run"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(folder / "run")
    assert list(Path("run").glob("wandb/offline-run-*/*.wandb"))


def test_wandb_without_a_key_gets_one_line_and_no_folder(folder):
    pytest.importorskip("wandb")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment = {**kept, "HOME": str(folder), "NETRC": str(folder / "netrc")}
    command = [sys.executable, "-m", "doodl_cli", *SMALL, "output_dir=run"]

    def run(*words):
        done = subprocess.run(
            [*command, *words], env=environment, capture_output=True, text=True, timeout=120
        )
        return done.returncode, done.stderr

    for words in (["log=wandb"], ["-m", "log=[tensorboard,wandb]", "seed=1,2"]):
        code, err = run(*words)
        assert (code, err.count("\n")) == (2, 1)
        assert "log=wandb: no API key is configured; must be logged in" in err
    environment["WANDB_API_KEY"] = "short"
    code, err = run("log=wandb")
    assert (code, err.count("\n")) == (2, 1)
    assert "log=wandb: WANDB_API_KEY invalid: API key must have 40+" in err
    assert not (folder / "run").exists()
