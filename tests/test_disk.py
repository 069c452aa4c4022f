"""A disk that is full, read-only or gone: one line, exit code 1, and what was complete is whole."""

import errno
import os
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from prove_resume import read

from doodl_cli import files
from doodl_cli.cli import main
from doodl_cli.errors import CannotWrite
from doodl_cli.run_directory import RunDirectory
from tests.runs import needs_weights, read_history, read_metadata
from tests.test_run_directory import write_run

pytestmark = pytest.mark.usefixtures("folder")
SMALL = ["run", "guidance=colourfulness", "prompt=x", "evaluate=[]", "device=cpu", "batch_size=1"]
SMALL += ["sampler.n_steps=1", "optimizer.n_iters=3", "seed=[0,1]"]


@contextmanager
def mounted(path, options):
    """A file system in memory with these options, where the system allows it."""
    path.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def assert_whole(run):
    """Check that every file can be read, but for the last line of a log."""
    for path in run.rglob("*"):
        assert not path.name.endswith(".part")
        if path.is_file():
            read(path)


def fails(words, capfd):
    """Return the one line with which a command exits 1."""
    assert main(words) == 1
    lines = capfd.readouterr().err.splitlines()
    errors = [line for line in lines if "iteration" not in line]
    assert len(errors) == 1, lines
    return errors[0]


def test_a_disk_that_is_full_from_any_write_on_leaves_whole_files(tmp_path, monkeypatch):
    """Every third write in turn is the first that fails."""
    whole = write_run(tmp_path / "whole")
    n_writes = 0

    def refuse_from(first):
        @contextmanager
        def writing(path):
            nonlocal n_writes
            n_writes += 1
            with real(path):
                if n_writes > first:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                yield

        return writing

    real = files.writing
    for first in range(0, 10_000, 3):
        run, n_writes = tmp_path / str(first), 0
        with monkeypatch.context() as patch:
            patch.setattr(files, "writing", refuse_from(first))
            if completes(run):
                break
        assert_whole(run)
    assert first > 50
    assert_same_pictures(whole, run)


def completes(run):
    """Whether a run is written to its end; what stops it must be said in one line."""
    try:
        write_run(run)
    except CannotWrite as error:
        return not str(error).endswith("cannot be written (No space left on device)")
    return True


def assert_same_pictures(run, other):
    for path in run.rglob("*.png"):
        assert path.read_bytes() == (other / path.relative_to(run)).read_bytes()


def test_a_file_that_does_not_fit_gives_its_space_back_and_the_old_one_stays(tmp_path):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        files.write_whole(disk / "a", b"old")
        with pytest.raises(CannotWrite, match="/a: cannot be written"):
            files.write_whole(disk / "a", bytes(100_000))
        assert (disk / "a").read_bytes() == b"old"
        assert [path.name for path in disk.iterdir()] == ["a"]


@needs_weights
def test_a_full_disk_is_said_in_one_line_and_a_run_goes_on_when_there_is_room(tmp_path, capfd):
    with mounted(tmp_path / "disk", "size=180k") as disk:  # a run takes twice as much
        line = fails([*SMALL, f"output_dir={disk}/run"], capfd)
        assert "cannot be written (No space left on device); go on with resume=" in line
        assert_whole(disk / "run")
        assert read_metadata(disk / "run")["status"] in ("running", "failed")
        assert read_metadata(disk / "run")["samples"][0]["seed"] == 0
        assert main(["report", f"{disk}/run"]) in (0, 1)
        capfd.readouterr()
        shutil.copytree(disk / "run", "room")
    assert main(["run", "resume=room"]) == 0
    assert main([*SMALL, "output_dir=whole"]) == 0
    assert read_metadata("room")["samples"] == read_metadata("whole")["samples"]
    for file in Path("whole/samples").rglob("*.*"):
        assert file.read_bytes() == Path("room", *file.parts[1:]).read_bytes(), file


@needs_weights
def test_a_folder_deleted_during_the_run_is_not_made_again(folder, monkeypatch, capfd):
    add = RunDirectory.add

    def add_and_delete(directory, record):
        add(directory, record)
        if record.iteration == 1:
            shutil.rmtree(directory.path)

    monkeypatch.setattr(RunDirectory, "add", add_and_delete)
    line = fails([*SMALL, "output_dir=run"], capfd)
    assert line.startswith(f"doodl: {folder}/run/")
    assert line.endswith("cannot be written (No such file or directory)")
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_exits_1_with_one_line(tmp_path, capfd):
    with mounted(tmp_path / "disk", "ro") as disk:
        for below in ("", "/run", "/a/b"):
            line = fails([*SMALL, f"output_dir={disk}{below}"], capfd)
            assert line.startswith(f"doodl: output_dir={disk}{below}: ")
            assert line.endswith(f"{disk} cannot be written to")


def test_a_report_that_cannot_be_written_exits_1_with_one_line(tmp_path, capfd):
    run = write_run(tmp_path / "run")
    with mounted(tmp_path / "disk", "size=1m") as disk:
        shutil.copytree(run, disk / "run", ignore=shutil.ignore_patterns("*.webp", "loss.png"))
        (disk / "ballast").write_bytes(bytes(disk_free(disk)))
        line = fails(["report", str(disk / "run")], capfd)
        assert line == (
            f"doodl: {disk}/run/report.html: cannot be written (No space left on device)"
        )
        assert len(read_history(disk / "run")) == 8


def disk_free(path):
    free = os.statvfs(path)
    return free.f_bavail * free.f_bsize
