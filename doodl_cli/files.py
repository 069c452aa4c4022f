"""Writing to the disk: a file whole or not at all, a log line by line, and what the disk refuses.

What writes raises CannotWrite, one line for the user, where the disk is full, read-only or gone.
"""

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

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


def read_values(path: Path, parse: Callable[[str], Any], kind: type = dict) -> Any:
    """Return the values in a file of JSON or YAML: none of them where it is not a whole `kind`."""
    try:
        values = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return kind()
    return values if isinstance(values, kind) else kind()


def to_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of lines by column as CSV; what a line does not have is an empty cell."""
    columns = list(dict.fromkeys(name for line in lines for name in line))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
