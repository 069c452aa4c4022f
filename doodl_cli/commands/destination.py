"""Where a job writes: its run directory, checked before the work and claimed after the checks."""

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from doodl_cli.errors import CannotWrite, UserError


def find_destination(cfg: DictConfig) -> Path:
    """Return the run directory that a job's configuration names."""
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        return Path(job.runtime.output_dir) / str(job.job.num)
    return Path(cfg.output_dir).expanduser().absolute()


def hydra_files(cfg: DictConfig) -> dict[str, str]:
    """Return the files that Hydra would have written to .hydra/."""
    hydra = HydraConfig.get()
    return {
        "config.yaml": OmegaConf.to_yaml(cfg),
        "hydra.yaml": OmegaConf.to_yaml(hydra),
        "overrides.yaml": OmegaConf.to_yaml(hydra.overrides.task),
    }


def was_begun(cfg: DictConfig, path: Path) -> bool:
    """Whether this job of a sweep was begun before: it was requeued.

    A sweep's folder is its own, so that nothing else can have written there. What is left of a job
    that had no configuration yet is removed.
    """
    if HydraConfig.get().mode != RunMode.MULTIRUN or not path.exists():
        return False
    if (path / "config.yaml").exists():
        return True
    shutil.rmtree(path)
    return False


def free_destination(cfg: DictConfig) -> Path:
    """Return the run directory of work that starts anew when requeued, free to be claimed.

    Removes what an earlier start of this job left. Raises as `check_free` does.
    """
    path = find_destination(cfg)
    if was_begun(cfg, path):
        shutil.rmtree(path)  # it takes no time to do it again
    check_free(path, is_pattern(cfg))
    return path


def check_free(path: Path, pattern: bool = False) -> None:
    """Check that a run directory can be made at `path` without touching what is there.

    Raises UserError if it is a file or holds something (with `pattern`, the last is left to
    `claim`), CannotWrite if nothing can be written there.
    """
    try:
        parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if not parent.is_dir():
            raise UserError(f"output_dir={path}: {parent} must be a folder")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise CannotWrite(f"output_dir={path}: {parent} cannot be written to")
        if not pattern and path.exists() and any(path.iterdir()):
            raise UserError(f"output_dir={path}: must be a new or an empty folder")
    except OSError as error:
        raise refused(path, error) from error


def claim(path: Path, pattern: bool = False) -> Path:
    """Make the run directory and return it. No two processes get the same one.

    A `pattern`, as the default is, may name one folder twice: then a number is added.
    """
    for n in itertools.count():
        candidate = path.with_name(f"{path.name}-{n}") if n else path
        try:
            candidate.mkdir(parents=True, exist_ok=True)
            (candidate / ".hydra").mkdir()
            return candidate
        except FileExistsError:
            if not pattern:
                raise UserError(f"output_dir={path}: must be a new or an empty folder") from None
        except OSError as error:
            raise refused(path, error) from error
    raise AssertionError("unreachable")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep a second process from working on a run directory; a process that dies unlocks it.

    Raises UserError where another process works on it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"resume={path}: another process is working on it") from error
        yield
    finally:
        os.close(folder)


def refused(path: Path, error: OSError) -> UserError | CannotWrite:
    """Return whose fault it is that a folder cannot be made: the disk's or the name's."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
        return CannotWrite(f"output_dir={path}: cannot be written to ({error.strerror})")
    return UserError(f"output_dir={path}: must name a folder ({error.strerror})")


def is_pattern(cfg: DictConfig) -> bool:
    """Whether output_dir was made by filling in the time or another value."""
    return OmegaConf.is_interpolation(cfg, "output_dir")
