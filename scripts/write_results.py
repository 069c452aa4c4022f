"""Write the tables and pictures of docs/results.md from a finished bench of the embedded model.

    python scripts/write_results.py BENCH --more OTHER [OTHER ...]

BENCH is the folder of `doodl bench suite=embedded`, OTHER those of further complex prompts, or of
the same with `seeds=` of their own, to be put together; doodl_cli/assets/suites/tuned.json has what
the methods were tuned to (scripts/tune_methods.py) and docs/results/ablations.json what was
measured by scripts/measure_ablations.py. What is between the page's marks is written anew, and
docs/results/ gets the curves and the sheets, smaller.
"""

import argparse
import csv
import io
import json
import re
from pathlib import Path
from statistics import mode
from typing import Any

import numpy as np
from measured import over_prompts, read_lines
from PIL import Image

from doodl_cli.bench.collect import CHECKS, PRESENCE
from doodl_cli.bench.statistics import Interval, bootstrap_mean, compare
from doodl_cli.bench.suite import TUNED, packaged
from doodl_cli.bench.tables import (
    OURS,
    mark,
    show_comparison,
    show_gain,
    show_interval,
    to_markdown,
)
from doodl_cli.files import read_values

PAGE = Path(__file__).parents[1] / "docs/results.md"
PICTURES = PAGE.parent / "results"
WIDTH = 1000  # of pictures, at most
MOST_BYTES = 400_000  # of all pictures
QUALITIES = range(85, 0, -5)
WITH_MORE = "complex"  # the part that another bench has further pictures of
DETAILS = f"{CHECKS}."  # the beginning of the names of single checks

Table = list[list[str]]


def read_table(lines: list[str]) -> Table:
    """Return the cells of a Markdown table, the head first."""
    rows = [re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in lines]
    return [[cell.strip().replace("\\|", "|") for cell in row] for row in rows[:1] + rows[2:]]


def read_parts(text: str) -> dict[str, tuple[str, list[Table]]]:
    """Return by part its heading and tables, from a bench's table.md."""
    parts = {}
    for section in re.split(r"^## ", text, flags=re.M)[1:]:
        heading, _, body = section.partition("\n")
        blocks = [block.splitlines() for block in body.strip().split("\n\n")]
        tables = [read_table(block) for block in blocks if "".join(block).startswith("|")]
        parts[heading.partition(":")[0]] = heading, tables
    return parts


def read_together(benches: list[Path], part: str) -> list[dict[str, str]]:
    """Return the lines of a part of several benches.

    Raises SystemExit for benches with the same pictures, which would count twice.
    """
    found = [[x for x in read_lines(bench) if x["part"] == part] for bench in benches]
    keys = ("prompt", "target", "seed", "of_bench")
    pictures = [{tuple(line[key] for key in keys) for line in lines} for lines in found]
    if len(set().union(*pictures)) < sum(map(len, pictures)):
        raise SystemExit(f"{part}: benches have the same prompts and seeds; must differ in either")
    return [line for lines in found for line in lines]


def compare_methods(lines: list[dict[str, str]], titles: list[str]) -> tuple[Table, Table]:
    """Return the means over prompts and the gains of `doodl`, as a bench's own tables.

    `titles`: of the scores, as they have them.
    """
    means: dict[str, list[dict[str, float]]] = {}  # by method, of each score
    for method in dict.fromkeys(line["method"] for line in lines):
        of_method = [line for line in lines if line["method"] == method]
        names = [title.partition(" (")[0] for title in titles]
        means[method] = [over_prompts([x for x in of_method if x[y]], y) for y in names]
    rows = [
        [method, *(show_interval(bootstrap_mean(list(x.values()))) for x in of_scores)]
        for method, of_scores in means.items()
    ]
    gains = [
        [method, *(show_comparison(compare(*x)) for x in zip(means[OURS], theirs, strict=True))]
        for method, theirs in means.items()
        if method != OURS
    ]
    return [["method", *titles], *rows], [[f"{OURS} less", *titles], *gains]


def write_together(benches: list[Path], part: str, gains: Table) -> str:
    """Return the tables of a part over the pictures of several benches, its gains in one given."""
    lines = read_together(benches, part)
    tables = compare_methods(lines, gains[0][1:])
    prompts = [line["prompt"] for line in lines if line["method"] == OURS]
    plain, details = zip(*map(split_details, tables), strict=True)
    counts = f"{len(set(prompts))} prompts, {len(prompts)} pictures a method."
    return "\n\n".join([counts, *map(markdown, (*plain, *details))])


def split_details(table: Table) -> tuple[Table, Table]:
    """Return a table without the columns of single checks, and these beside the first column."""
    details = [i for i, name in enumerate(table[0]) if name.startswith(DETAILS)]
    others = [i for i in range(len(table[0])) if i not in details]
    return [[row[i] for i in others] for row in table], [
        [row[i].removeprefix(DETAILS) for i in [0, *details]] for row in table
    ]


def add_seconds(table: Table, seconds: dict[str, str]) -> Table:
    """Return a table of means with the seconds a picture before the settings."""
    head, *rows = table
    return [
        [*head[:-1], "seconds", head[-1]],
        *([*row[:-1], f"{float(seconds[row[0]]):.2f}", row[-1]] for row in rows),
    ]


def write_part(name: str, heading: str, tables: list[Table], seconds: dict[str, str]) -> str:
    """Return a part of the suite: means, gains, checks, curves and pictures."""
    means, *gains = tables
    plain, details = split_details(means)
    blocks = [heading.partition(": ")[2] + ".", markdown(add_seconds(plain, seconds))]
    for table in gains:
        gained, of_checks = split_details(table)
        blocks.append(markdown(gained))
    if len(details[0]) > 1:
        blocks += ["What the pictures show, check by check:", markdown(details)]
        blocks += [markdown(of_checks) for _ in gains]
    blocks += [f"![scores against calls](results/curves-{name}.webp)"]
    blocks += [f"![what every method makes of one noise](results/sheet-{name}.webp)"]
    return "\n\n".join(blocks)


def markdown(table: Table) -> str:
    return "\n".join(to_markdown(table))


def write_tuned(tuned: dict[str, Any]) -> str:
    """Return what each method was tuned to, and the best score with each value of its keys.

    Of settings that keep the least of other scores, where there is a `least`, and of the finalists,
    where others were `screened` before.
    """
    rows = [["suite", "method", "chosen", "score", "settings", "the best with each value"]]
    for suite, methods in tuned.items():
        for method, entry in methods.items():
            score, sweep = entry["score"], entry["sweep"]
            chosen = " ".join(entry["overrides"])
            best: dict[str, dict[float, float]] = {}
            for setting, found in sweep.items():
                if any(found[name] < least for name, least in entry.get("least", {}).items()):
                    continue
                for key, _, value in (word.partition("=") for word in setting.split()):
                    of_key = best.setdefault(key, {})
                    of_key[float(value)] = max(
                        found[score], of_key.get(float(value), -float("inf"))
                    )
            cells = [
                f"{key}: " + ", ".join(f"{value:g} {most:.4g}" for value, most in sorted(x.items()))
                for key, x in best.items()
            ]
            figure = f"{score} {sweep[chosen][score]:.4g}"
            n_settings = str(len(sweep | entry.get("screened", {})))
            rows.append([suite, method, f"`{chosen}`", figure, n_settings, "; ".join(cells)])
    return markdown(rows)


def write_chosen(tuned: dict[str, Any]) -> str:
    """Return what `doodl` was tuned to on each suite."""
    keys = ["optimizer.lr", "optimizer.clip", "optimizer.n_candidates"]
    keys += ["sampler.n_steps", "sampler.gamma"]
    rows = [["suite", *(f"`{key}`" for key in keys)]]
    for suite, methods in tuned.items():
        chosen = dict(word.split("=") for word in methods["doodl"]["overrides"])
        values = [f"{float(chosen[key]):g}" if key in chosen else "the default" for key in keys]
        rows.append([suite, *values])
    return markdown(rows)


def write_ablations(measured: dict[str, Any]) -> str:
    """Return every variant, a table a suite, at the budget that most of them were measured at."""
    blocks = []
    for suite, of_suite in measured.items():
        budget = mode(row["budget"] for row in of_suite["rows"])
        head = ["variant", f"{of_suite['held_out']} (held out)", "gain on the setting as tuned"]
        head += [f"{of_suite['optimised']} (optimised)", "clip_text_b", "change", "calls"]
        rows = [
            [
                row["variant"],
                f"{row['held_out']:.4g}",
                show_row(row),
                f"{row['optimised']:.4g}",
                f"{row['prompt']:.4g}",
                f"{row['change']:.3g}",
                f"{row['calls']:.0f}",
            ]
            for row in of_suite["rows"]
            if row["budget"] == budget
        ]
        blocks.append(f"`{suite}`, {budget} calls:\n\n{markdown([head, *rows])}")
    return "\n\n".join(blocks)


def write_budgets(measured: dict[str, Any]) -> str:
    """Return the samplers at every budget: held-out score, and optimised score in brackets."""
    blocks = []
    for suite, of_suite in measured.items():
        found: dict[str, dict[int, str]] = {}
        for row in of_suite["rows"]:
            shown = f"{row['held_out']:.4g}{mark(Interval(*row['gain']))} ({row['optimised']:.4g})"
            found.setdefault(row["variant"], {})[row["budget"]] = shown
        found = {name: shown for name, shown in found.items() if len(shown) > 1}
        budgets = sorted({budget for shown in found.values() for budget in shown})
        head = ["sampler", *(f"{budget} calls" for budget in budgets)]
        rows = [[name, *(x.get(budget, "") for budget in budgets)] for name, x in found.items()]
        scores = f"{of_suite['held_out']} ({of_suite['optimised']})"
        blocks.append(f"`{suite}`, {scores}:\n\n{markdown([head, *rows])}")
    return "\n\n".join(blocks)


def read_names(means: Table) -> tuple[str, str]:
    """Return the optimised and the deciding score of a part's table of means."""
    found = {kind: name for name, _, kind in (cell.partition(" (") for cell in means[0])}
    return found["optimised)"], found["held out)"]


def write_agreement(bench: Path, judges: dict[str, tuple[str, str]]) -> str:
    """Return how far the optimised score tells which of a prompt's pictures the judge prefers.

    The correlation of both over the pictures of the seeds of a prompt, each less their mean; in
    brackets, over the prompts that name things, that with their presence. `judges`: by part the
    optimised and the deciding score.
    """
    lines = read_lines(bench)
    found: dict[str, dict[str, str]] = {}
    for part, names in judges.items():
        of_part = [line for line in lines if line["part"] == part]
        for method in dict.fromkeys(line["method"] for line in of_part):
            of_prompts: dict[tuple[str, str], list[list[float]]] = {}
            for line in of_part:
                if line["method"] == method:
                    values = [float(line.get(name) or "nan") for name in (*names, PRESENCE)]
                    of_prompts.setdefault((line["prompt"], line["target"]), []).append(values)
            apart = np.concatenate([x - np.mean(x, axis=0) for x in of_prompts.values()])
            if not apart[:, 0].any():  # one seed a prompt
                continue
            optimised, held_out, presence = apart.T
            shown = f"{np.corrcoef(optimised, held_out)[0, 1]:.2f}"
            named = ~np.isnan(presence)
            if named.any():
                shown += f" ({np.corrcoef(optimised[named], presence[named])[0, 1]:.2f})"
            found.setdefault(method, {})[part] = shown
    parts = list(dict.fromkeys(part for cells in found.values() for part in cells))
    rows = [[method, *(cells.get(part, "") for part in parts)] for method, cells in found.items()]
    return markdown([["method", *parts], *rows])


def show_row(row: dict[str, Any]) -> str:
    """Return a variant's gain as the tables of a bench do; nothing for the setting as tuned."""
    gain = Interval(*row["gain"])
    return "" if gain == Interval(0, 0, 0) else f"{show_gain(gain)}, wins {row['wins']:.0%}"


def draw_pictures(bench: Path, parts: list[str]) -> dict[str, bytes]:
    """Return the curves and sheets as WebP, of the highest quality at which all of them fit."""
    images = {}
    for part in parts:
        for name in (f"curves-{part}.png", f"sheet-{part}.webp"):
            with Image.open(bench / name) as image:
                size = WIDTH, round(WIDTH / image.width * image.height)
                shown = image.convert("RGB")
                images[name] = shown if image.width <= WIDTH else shown.resize(size)
    for quality in QUALITIES:
        encoded = {f"{Path(x).stem}.webp": encode(y, quality) for x, y in images.items()}
        if sum(map(len, encoded.values())) <= MOST_BYTES:
            return encoded
    raise SystemExit(f"{len(images)} pictures do not fit into {MOST_BYTES} bytes")


def encode(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=6)
    return buffer.getvalue()


def fill(text: str, contents: dict[str, str]) -> str:
    """Return a page with contents between its marks. Raises SystemExit for a mark that lacks."""
    for name, content in contents.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        text, n = re.subn(pattern, lambda x: f"{x[1]}{content}\n{x[2]}", text, flags=re.S)  # noqa: B023
        if n != 1:
            raise SystemExit(f"{PAGE}: must have the mark <!-- {name} --> once")
    return text


def read_seconds(path: Path) -> dict[str, dict[str, str]]:
    """Return by part and method the seconds a picture."""
    seconds: dict[str, dict[str, str]] = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            seconds.setdefault(line["part"], {})[line["method"]] = line["seconds"]
    return seconds


def main() -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bench", type=Path)
    parser.add_argument("--more", type=Path, nargs="+", required=True, help="complex prompts")
    args = parser.parse_args()
    bench: Path = args.bench
    parts = read_parts((bench / "table.md").read_text())
    seconds = read_seconds(bench / "seconds.csv")
    contents = {
        name: write_part(name, heading, tables, seconds[name])
        for name, (heading, tables) in parts.items()
    }
    gains = parts[WITH_MORE][1][1]
    contents[f"more {WITH_MORE}"] = write_together([bench, *args.more], WITH_MORE, gains)
    contents["agreement"] = write_agreement(bench, {x: read_names(parts[x][1][0]) for x in parts})
    tuned = read_values(packaged() / TUNED, json.loads)
    contents["tuned"] = write_tuned(tuned)
    contents["chosen"] = write_chosen(tuned)
    measured = read_values(PICTURES / "ablations.json", json.loads)
    contents["ablations"] = write_ablations(measured)
    contents["budgets"] = write_budgets(measured)
    PAGE.write_text(fill(PAGE.read_text(), contents))
    PICTURES.mkdir(exist_ok=True)
    for name, data in draw_pictures(bench, list(parts)).items():
        (PICTURES / name).write_bytes(data)


if __name__ == "__main__":
    main()
