"""Write the tables of docs/performance.md from what the other scripts here have measured.

    python scripts/bench/write_table.py

They are put between the page's marks; docs/performance.jsonl and docs/memory.jsonl hold the lines
of measure_steps.py, docs/precision.jsonl those of measure_precision.py.
"""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def read_lines(name: str) -> list[dict[str, Any]]:
    """Return the lines of a file of measurements."""
    return [json.loads(line) for line in (DOCS / name).read_text().splitlines()]


def table(head: list[str], rows: list[list[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def table_of_steps() -> str:
    """Return the cost of a step for each setting."""
    head = ["model, sampler, steps", "batch", "options", "seconds a step", "a latent"]
    head += ["peak, GiB", "held, GiB"]
    rows: list[list[object]] = []
    for line in read_lines("performance.jsonl"):
        options = [f"`{key}={line[key]}`" for key in ("compile",) if line[key] == "true"]
        if line["unet_checkpointing"] == "true":
            options.append("`memory.unet_checkpointing=true`")
        if line["memory"] != "reversible":
            options.append(f"`memory={line['memory']}`")
        if line.get("limit"):
            options.append(f"no more than {line['limit']} GiB")
        seconds = line["seconds"]
        rows.append(
            [
                f"{line['model']}, {line['sampler']}, {line['n_steps']}",
                line["batch"],
                ", ".join([line["dtype"], *options]),
                f"{seconds:.2f} ({line['spread'][0]:.2f} to {line['spread'][1]:.2f})",
                f"{seconds / int(line['batch']):.2f}",
                f"{line['peak_gib']:.2f}",
                f"{line['reserved_gib']:.1f}",
            ]
        )
    return table(head, rows)


def table_of_memory() -> str:
    """Return the peak memory of a step for numbers of steps, each measured in its own process."""
    lines = read_lines("memory.jsonl")
    head = ["", *(f"{line['n_steps']} steps" for line in lines)]
    name = f"{lines[0]['model']}, {lines[0]['sampler']}: peak, GiB"
    return table(head, [[name, *(f"{line['peak_gib']:.3f}" for line in lines)]])


def table_of_precision() -> str:
    """Return how near the gradients in half precision are to float32's."""
    head = ["sampler, steps", "networks in", "cosine", "relative error"]
    rows: list[list[object]] = [
        [
            f"{line['sampler']}, {line['n_steps']}",
            line["dtype"],
            f"{line['cosine']:.6f}",
            f"{line['relative_error']:.2%}",
        ]
        for line in read_lines("precision.jsonl")
    ]
    return table(head, rows)


def main() -> None:
    """Put the tables into the page."""
    page = DOCS / "performance.md"
    text = page.read_text()
    contents = {
        "steps": table_of_steps(),
        "memory": table_of_memory(),
        "precision": table_of_precision(),
    }
    for name, content in contents.items():
        mark = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(mark, lambda found: f"{found[1]}{content}\n{found[2]}", text, flags=re.S)  # noqa: B023
    page.write_text(text)


if __name__ == "__main__":
    main()
