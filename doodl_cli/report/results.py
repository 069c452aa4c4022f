"""results.csv: a line a sample, every setting and every score in a column of its own."""

from collections.abc import Sequence
from typing import Any

from doodl_cli.files import to_csv
from doodl_cli.report.collect import Row

ITERATES = ("initial", "best", "final")


def write_results(rows: Sequence[Row]) -> str:
    """Return the table as CSV; a value that a run does not have is an empty cell."""
    return to_csv([to_cells(row) for row in rows])


def to_cells(row: Row) -> dict[str, Any]:
    """Return a row's cells by the names of their columns."""
    cells: dict[str, Any] = {
        "run": row.run,
        "sample": row.folder.name if row.folder != row.run else "",
        "status": row.status,
        "cause": row.cause,
        "prompt": row.prompt,
        "seed": row.seed,
        "best_iteration": row.best_iteration,
    }
    for name, values in row.scores.items():
        cells |= {f"{name}.{iterate}": values.get(iterate) for iterate in ITERATES}
    return cells | {f"set.{name}": value for name, value in row.settings.items()}
