"""Writing to the disk: a file whole or not at all, a log line by line, and what the disk refuses.

Every function raises CannotWrite, one line for the user, where the disk is full, read-only or gone.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from doodl_cli.errors import CannotWrite


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise CannotWrite for an OSError of writing to `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise CannotWrite(f"{path}: cannot be written ({reason})") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write under another name beside the file, then move it into place."""
    partial = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            partial.write_bytes(content)
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)  # its part of a full disk is of use to other files
            raise


def append(path: Path, content: bytes) -> int:
    """Add to the end of a log and return its length."""
    with writing(path), path.open("ab") as file:
        file.write(content)
        file.flush()
        return file.tell()


def cut(path: Path, size: int) -> None:
    """Cut off what a log has beyond `size` bytes, if there is one."""
    with writing(path):
        if path.exists():
            os.truncate(path, size)


def make_folder(folder: Path, root: Path) -> None:
    """Make a folder below `root`, which must be there: one that was deleted stays so."""
    if folder != root:
        make_folder(folder.parent, root)
        with writing(folder):
            folder.mkdir(exist_ok=True)
