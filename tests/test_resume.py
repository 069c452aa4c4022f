"""A run that is cut short at any moment goes on as if there had been no break."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from doodl_cli.cli import main
from doodl_cli.commands.destination import locked
from doodl_cli.errors import UserError
from doodl_cli.optimize import Settings, optimize
from doodl_cli.sampling.bdia import damp
from tests.problems import brightness, make_noise, make_problem
from tests.runs import ROOT, needs_weights, read_metadata, start

N_ITERS = 3
pytestmark = pytest.mark.usefixtures("one_thread", "folder")
WORDS = ["run", "guidance=colourfulness", "prompt=a cat", "seed=[3,5,7]", "batch_size=2"]
WORDS += ["sampler.n_steps=2", f"optimizer.n_iters={N_ITERS}", "guidance.colourfulness.n_crops=2"]
WORDS += ["evaluate=symmetry", "device=cpu"]

SETTINGS = {
    "doodl": {},
    "adam": {"rule": "adam", "schedule": "cosine", "warmup": 2},
    "without momentum": {"momentum": 0.0},
    "untied": {"tied": False, "perturb": 1e-2},
    "balanced": {"balance": True},
    "stopping": {"stop_on": "darkness", "patience": 1, "lr": 30.0},
}


def same(first, second):
    """Whether two records say the same, their time aside."""
    a, b = vars(first) | {"seconds": 0}, vars(second) | {"seconds": 0}
    return all(
        torch.equal(torch.stack(a[name]), torch.stack(b[name]))
        if name == "pair"
        else torch.equal(a[name], b[name])
        if name == "images"
        else all(torch.equal(a[name][key], b[name][key]) for key in a[name] | b[name])
        if name == "state"
        else str(a[name]) == str(b[name])  # NaN is not equal to NaN
        for name in a
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_an_optimisation_goes_on_from_any_iteration_to_the_same_records(name):
    settings = Settings(n_iters=5, **SETTINGS[name])
    evaluation = {"darkness": lambda images, prompts: -brightness(images, prompts)}
    problem, x_T = make_problem([3, 5], evaluation=evaluation), make_noise(2)
    records = list(optimize(problem, settings, (x_T, x_T)))
    zero = torch.zeros_like(x_T)  # what it started from matters no more
    for k, record in enumerate(records):
        rest = list(optimize(problem, settings, (zero, zero), record.state))
        assert len(rest) == len(records) - k - 1
        assert all(same(a, b) for a, b in zip(records[k + 1 :], rest, strict=True))


def wait_for_lines(process, run, n_lines):
    """Wait until a run has written n lines of its history."""
    history = run / "history.jsonl"
    while process.poll() is None:
        if history.exists() and len(history.read_bytes().splitlines()) >= n_lines:
            return
        time.sleep(0.02)


def assert_same_run(run, other):
    """Check that two runs left the same files, the times in them aside."""
    names = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        for folder in (run, other)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        if Path(name).suffix in (".png", ".webp", ".safetensors"):
            assert (run / name).read_bytes() == (other / name).read_bytes(), name
    a, b = (
        [json.loads(line) | {"seconds": 0} for line in (folder / "history.jsonl").open()]
        for folder in (run, other)
    )
    assert a == b
    a, b = read_metadata(run), read_metadata(other)
    assert a["status"] == b["status"] == "done"
    assert a["samples"] == b["samples"]
    assert a["round_trip_error"] == b["round_trip_error"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return a run of three samples in two batches that nothing disturbed."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["doodl"])
        assert main([*WORDS, f"output_dir={path}"]) == 0
    return path


@needs_weights
def test_a_run_killed_twice_ends_like_one_that_nothing_disturbed(undisturbed, folder, capsys):
    run = folder / "run"
    words = [*WORDS, f"output_dir={run}"]
    for n_lines in (3, 2 * N_ITERS + 3):  # in the first batch and in the second
        process = start(*words)
        wait_for_lines(process, run, n_lines)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert read_metadata(run)["status"] == "running"
        words = ["run", f"resume={run}"]
    with (run / "history.jsonl").open("a") as file:
        file.write('{"sample": 2, "itera')  # a line that the kill cut in two
    assert main(["run", f"resume={run}"]) == 0
    assert_same_run(undisturbed, run)
    capsys.readouterr()
    assert main(["run", f"resume={run}"]) == 0
    assert capsys.readouterr().out == f"already done\n{run}\n"


@needs_weights
def test_a_signal_before_the_time_is_up_saves_and_the_run_goes_on(undisturbed, folder):
    run = folder / "run"
    process = start(*WORDS, f"output_dir={run}")
    wait_for_lines(process, run, 4)
    with pytest.raises(UserError, match="another process is working on it"), locked(run):
        pass
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate()
    assert process.returncode == 143
    assert f"resume={run}" in err
    assert read_metadata(run)["status"] == "interrupted"
    assert (run / "samples/000/best.png").exists()
    assert main(["run", f"resume={run}"]) == 0
    assert_same_run(undisturbed, run)


@needs_weights
@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_the_slurm_job_of_the_docs_requeues_itself_and_goes_on(folder, monkeypatch):
    text = (ROOT / "docs/batch.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", text, re.DOTALL)
    words = [word for word in WORDS[1:] if not word.startswith("prompt")]
    Path("job.sh").write_text(script.replace("guidance=aesthetic", " ".join(words)))
    Path("prompts.txt").write_text("a cat\n")
    Path("bin").mkdir()
    for name, line in {
        "doodl": f'exec "{sys.executable}" -m doodl_cli "$@"',
        "scontrol": 'echo "$@" >> requeued',
    }.items():
        Path("bin", name).write_text(f"#!/bin/sh\n{line}\n")
        Path("bin", name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    process = subprocess.Popen(["bash", "job.sh"])
    wait_for_lines(process, Path("out"), 3)
    process.send_signal(signal.SIGUSR1)
    process.wait(timeout=60)
    assert Path("requeued").read_text() == "requeue 7\n"
    assert read_metadata("out")["status"] == "interrupted"
    subprocess.run(["bash", "job.sh"], check=True)
    assert read_metadata("out")["status"] == "done"
    assert Path("requeued").read_text() == "requeue 7\n"


@needs_weights
def test_a_run_stops_in_time_and_goes_on(undisturbed, folder, capsys):
    assert main([*WORDS, "output_dir=run", "max_seconds=0.01"]) == 0
    run = folder / "run"
    assert "max_seconds=0.01 are over" in capsys.readouterr().err
    metadata = read_metadata(run)
    assert metadata["status"] == "out of time"
    assert metadata["n_finished"] == 0
    assert len((run / "history.jsonl").read_text().splitlines()) == 2
    assert (run / "samples/001/best.png").exists()
    assert main(["run", f"resume={run}"]) == 0
    assert_same_run(undisturbed, run)


@needs_weights
def test_a_resumed_run_refuses_other_settings_unless_forced(folder, capsys):
    run = folder / "run"
    assert main([*WORDS, f"output_dir={run}", "memory=full", "max_seconds=0.01"]) == 0
    capsys.readouterr()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused = {
        "optimizer.lr=2": f"optimizer.lr=2: resume={run} was begun with 1.0; must stay so, unless",
        "sampler=edict": "sampler.name=edict: ",
        "guidance=aesthetic": "guidance.aesthetic.weight=1.0: ",
        "seed=4": "seed=4: ",
        "memory=auto": f"memory.name=auto: resume={run} was begun with full; must stay so",
        "resume=nowhere": "resume=nowhere: must be a run directory",
        "max_seconds=0": "max_seconds=0: must be a number above 0 or null",
    }
    for word, line in refused.items():
        assert main(["run", f"resume={run}", word]) == 2
        err = capsys.readouterr().err
        assert line in err
        assert err.count("\n") == 1
    assert main(["run", f"resume={run}", "seed=4", "force=true"]) == 2
    assert main(["run", "prompt=x", "guidance=aesthetic", "force=true"]) == 2
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    same = [
        "run",
        f"resume={run}",
        *WORDS[1:],
        "device=auto",
        "sampler=bdia",
        "max_seconds=0.01",
    ]  # the same words as before
    assert main(same) == 0
    assert main(["run", f"resume={run}", "force=true", "optimizer.n_iters=1"]) == 0
    assert read_metadata(run)["status"] == "done"
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["optimizer"]["n_iters"] == 1


@needs_weights
@pytest.mark.parametrize(
    ("begun", "word"), [("sampler=edict", "sampler=bdia"), ("sampler=bdia", "guidance=aesthetic")]
)
def test_a_forced_section_replaces_the_saved_one_whole(folder, begun, word):
    assert main([*WORDS[:3], *WORDS[5:], begun, "output_dir=run", "max_seconds=0.01"]) == 0
    assert main(["run", "resume=run", word, "sampler.n_steps=2", "force=true"]) == 0
    settings = yaml.safe_load((folder / "run/config.yaml").read_text())
    group, _, name = word.partition("=")
    if group == "sampler":
        expected = {"name": name, "n_steps": 2, "spacing": None, "gamma": damp(2)}
        assert settings["sampler"] == expected
    else:
        assert list(settings["guidance"]) == [name]


@needs_weights
def test_an_edit_goes_on_without_its_picture(folder):
    """The x_T it started from is in the state; the picture may be gone."""
    Image.new("RGB", (64, 64), "red").save("red.png")
    words = [*WORDS, "seed=3", "init=image", "init.path=red.png", "optimizer=adam"]
    assert main([*words, "output_dir=whole"]) == 0
    assert main([*words, "output_dir=run", "max_seconds=0.01"]) == 0
    assert (folder / "run/state.safetensors").exists()
    Path("red.png").unlink()
    assert main(["run", "resume=run"]) == 0
    assert_same_run(folder / "whole", folder / "run")
    assert "done" in (folder / "run/doodl.log").read_text()


@needs_weights
def test_a_run_that_is_older_than_a_key_goes_on_as_it_was(folder):
    assert main([*WORDS, "seed=3", "output_dir=run", "max_seconds=0.01"]) == 0
    settings = yaml.safe_load(Path("run/config.yaml").read_text())
    assert settings.pop("deterministic") is False
    Path("run/config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["run", "resume=run"]) == 0
    assert yaml.safe_load(Path("run/config.yaml").read_text())["deterministic"] is False
    assert main(["sample", "run=run", "which=best", "output_dir=again"]) == 0
