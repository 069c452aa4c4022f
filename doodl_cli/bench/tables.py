"""What the samples of a bench say together: means, comparisons, and both as CSV and Markdown.

Everything here follows from pictures and counters; what depends on the machine, seconds, is apart,
so that the same bench gives the same tables.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from doodl_cli.bench.collect import CHECKS, PRESENCE, Results, Sample
from doodl_cli.bench.metrics import frechet_distance, mean_distance
from doodl_cli.bench.runs import Part
from doodl_cli.bench.statistics import Comparison, Interval, average, bootstrap_mean, compare
from doodl_cli.files import to_csv

OURS = "doodl"


@dataclass(frozen=True)
class Summary:
    """A method on a part. `means`: each score over prompts; `change` of the picture beside them.

    `frechet` to the real pictures and `diversity` over seeds are None where there are none.
    """

    means: dict[str, Interval]
    change: Interval
    frechet: float | None
    diversity: Interval | None
    calls: float


def list_scores(results: Results, part: Part) -> list[str]:
    """Return the names of a part's scores: optimised, judge, checks, other held-out."""
    found = [name for sample in results.of(part.name) for name in sample.scores]
    first = (part.guidance, part.judge, CHECKS, PRESENCE)
    return list(dict.fromkeys(x for x in (*first, *found) if x in found))


def over_units(samples: Iterable[Sample], name: str) -> dict[str, float]:
    """Return each prompt's mean of a score over its seeds."""
    return average((s.row.unit, s.scores[name]) for s in samples if name in s.scores)


def summarise(results: Results, part: Part, method: str) -> Summary:
    """Return a method's figures on a part."""
    samples = results.of(part.name, method)
    means = {}
    for name in list_scores(results, part):
        values = list(over_units(samples, name).values())
        if values:
            means[name] = bootstrap_mean(values)
    real = results.real.get(part.name)
    embeddings = [s.embedding for s in samples if s.embedding is not None]
    distances = list(diversity_of_units(samples).values())
    return Summary(
        means=means,
        change=bootstrap_mean(list(average((s.row.unit, s.change) for s in samples).values())),
        frechet=None if real is None else frechet_distance(stack(embeddings), real),
        diversity=bootstrap_mean(distances) if distances else None,
        calls=sum(sample.calls for sample in samples) / len(samples),
    )


def stack(embeddings: Sequence[Any]) -> Any:
    import numpy as np

    return np.stack(embeddings)


def diversity_of_units(samples: Iterable[Sample]) -> dict[str, float]:
    """Return each prompt's mean distance between the pictures of its seeds, of those with any."""
    units: dict[str, list[Any]] = {}
    for sample in samples:
        if sample.embedding is not None:
            units.setdefault(sample.row.unit, []).append(sample.embedding)
    found = {unit: mean_distance(embeddings) for unit, embeddings in units.items()}
    return {unit: distance for unit, distance in found.items() if not math.isnan(distance)}


def compare_all(results: Results, part: Part) -> dict[tuple[str, str], Comparison]:
    """Return by baseline and score how much higher `doodl` is, none where it was not run."""
    methods = part.methods
    if OURS not in methods:
        return {}
    found = {}
    for method in methods:
        if method == OURS:
            continue
        for name in list_scores(results, part):
            ours, theirs = (over_units(results.of(part.name, m), name) for m in (OURS, method))
            comparison = compare(ours, theirs)
            if comparison is not None:
                found[method, name] = comparison
    return found


def write_samples(results: Results) -> str:
    """Return a line a sample as CSV."""
    lines = [
        {
            "part": sample.part,
            "method": sample.method,
            "seed": sample.row.seed,
            "of_bench": sample.seed,
            "number": sample.number,
            "prompt": sample.row.prompt,
            "target": sample.row.target,
            "kind": sample.row.kind,
            **sample.scores,
            "change": sample.change,
            "network_calls": sample.network_calls,
            "vjps": sample.vjps,
            "calls": sample.calls,
        }
        for sample in results.samples
    ]
    return to_csv(lines)


def write_comparisons(results: Results) -> str:
    """Return a line a comparison of `doodl` with a baseline as CSV."""
    lines = []
    for part in results.parts:
        for (method, name), found in compare_all(results, part).items():
            lines.append(
                {
                    "part": part.name,
                    "than": method,
                    "score": name,
                    "gain": found.gain.mean,
                    "gain_low": found.gain.low,
                    "gain_high": found.gain.high,
                    "wins": found.wins.mean,
                    "wins_low": found.wins.low,
                    "wins_high": found.wins.high,
                    "prompts": found.n_prompts,
                }
            )
    return to_csv(lines)


def write_seconds(results: Results) -> str:
    """Return the seconds a sample of every method as CSV: these depend on the machine."""
    lines = []
    for part in results.parts:
        seconds = average((sample.method, sample.seconds) for sample in results.of(part.name))
        for method in part.methods:
            lines.append({"part": part.name, "method": method, "seconds": f"{seconds[method]:.3f}"})
    return to_csv(lines)


Table = list[list[str]]  # the first row is the head


def means_table(results: Results, part: Part) -> Table:
    """Return a part's means with their intervals, a method a row."""
    scores = list_scores(results, part)
    summaries = {m: summarise(results, part, m) for m in part.methods}
    head = ["method", *(title(name, part) for name in scores), "change", "calls", "settings"]
    with_real = part.name in results.real
    with_seeds = any(summary.diversity for summary in summaries.values())
    head[-2:-2] = ["Frechet"] * with_real + ["diversity"] * with_seeds
    rows = []
    for method, summary in summaries.items():
        row = [method, *(show_interval(summary.means.get(name)) for name in scores)]
        row += [show_interval(summary.change)]
        row += [] if summary.frechet is None else [f"{summary.frechet:.4f}"]
        row += [show_interval(summary.diversity)] * with_seeds
        rows.append([*row, f"{summary.calls:.0f}", results.settings[part.name, method]])
    return [head, *rows]


def gains_table(results: Results, part: Part) -> Table:
    """Return what `doodl` gains on each baseline, and the share of prompts it wins."""
    found = compare_all(results, part)
    scores = list_scores(results, part)
    methods = list(dict.fromkeys(method for method, _ in found))
    head = ["doodl less", *(title(name, part) for name in scores)]
    rows = []
    for method in methods:
        cells = [found.get((method, name)) for name in scores]
        rows.append([method, *("" if c is None else show_comparison(c) for c in cells)])
    return [head, *rows] if rows else []


def title(name: str, part: Part) -> str:
    """Return a score's name with what it is to a part."""
    if name == part.guidance:
        return f"{name} (optimised)"
    return f"{name} (held out)" if name == part.judge else name


def show_interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{interval.mean:.4g} [{interval.low:.4g}, {interval.high:.4g}]"


def show_comparison(found: Comparison) -> str:
    """Return a gain with its interval, and the share of wins."""
    return f"{show_gain(found.gain)}, wins {found.wins.mean:.0%}"


def show_gain(gain: Interval) -> str:
    """Return a gain with its interval, marked where that excludes zero, without round-off."""
    mean, low, high = (f"{round(x, 12) + 0.0:+.4g}" for x in (gain.mean, gain.low, gain.high))
    return f"{mean}{mark(gain)} [{low}, {high}]"  # + 0.0: no -0


def mark(gain: Interval) -> str:
    return "*" if gain.excludes_zero else ""


def write_markdown(results: Results) -> str:
    """Return both tables of every part."""
    bench = results.bench
    lines = [f"# {bench.suite.name}: {bench.budget:g} calls a sample", ""]
    lines += [describe(results), ""]
    for part in results.parts:
        units = {row.unit for row in part.rows}
        n = len(part.rows) * len(bench.seeds)
        lines += [f"## {part.name}: {len(units)} prompts, {n} pictures a method", ""]
        for table in (means_table(results, part), gains_table(results, part)):
            lines += [*to_markdown(table), ""]
    return "\n".join(lines)


def describe(results: Results) -> str:
    """Say what the figures are."""
    return (
        f"Means over prompts with 95 % bootstrap intervals; gains are paired, and * marks an "
        f"interval that excludes 0. A call is one guided evaluation of the network; one with its "
        f"gradient counts {results.bench.vjp_cost:g}. Change: root mean square difference to the "
        f"plain picture of the same noise, from 0 to 1. Frechet distance (lower is better) and "
        f"diversity by embeddings of the held-out CLIP."
    )


def to_markdown(table: Table) -> list[str]:
    if not table:
        return []
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
