"""`doodl report DIR...`: runs side by side in report.html and results.csv."""

from pathlib import Path
from typing import Any

from doodl_cli.errors import UserError
from doodl_cli.files import write_whole
from doodl_cli.report import Row, collect, draw_page, find_runs, write_results

ALWAYS = (
    "method.name", "sampler.name", "sampler.n_steps", "cfg_scale", "optimizer.n_iters",
    "optimizer.lr",
)  # fmt: skip
PAGE = "report.html"
IN_ROW = ("prompt", "seed")  # a sample has its own

HELP = """\
doodl report DIR...    put runs side by side: report.html and results.csv

A DIR is a run directory, or a folder that holds some, as a sweep's. The files are written to it if
it is the only one, else to the current folder.
"""


def main(words: list[str]) -> None:
    """Write both files and print where they are. Raises UserError and CannotWrite."""
    if set(words) & {"-h", "--help"}:
        print(HELP, end="")
        return
    if not words:
        raise UserError("report: must be given run directories, or folders of them")
    folders = [Path(word).expanduser() for word in words]
    runs = list(dict.fromkeys(run for folder in folders for run in find_runs(folder)))
    rows = [row for run in runs for row in collect(run)]
    destination = folders[0] if len(folders) == 1 else Path()
    files = {PAGE: draw_page(rows, choose_settings(rows)), "results.csv": write_results(rows)}
    for name, text in files.items():
        path = destination / name
        write_whole(path, text.encode())
        print(path)


def write_page(run: Path) -> None:
    """Write the page of a single run into its directory."""
    rows = collect(run)
    write_whole(run / PAGE, draw_page(rows, choose_settings(rows)).encode())


def choose_settings(rows: list[Row]) -> list[str]:
    """Return the names of the settings that differ between the runs, and of a few more."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.settings.items():
            values.setdefault(name, set()).add(repr(value))
    differ: dict[str, Any] = dict.fromkeys(name for name, found in values.items() if len(found) > 1)
    names = [*differ, *(name for name in ALWAYS if name in values and name not in differ)]
    return [name for name in names if name not in IN_ROW]
