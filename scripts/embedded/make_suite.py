"""Write the suite of complex prompts, sets/complex_prompts.jsonl: DrawBench in small.

A hundred prompts with backgrounds, relations, counts and styles over the concepts that the held-out
classifier knows, drawn with a fixed seed. `check` is what can be read off the picture without a
judge: the background's colour, or which concept is where.

    python scripts/embedded/make_suite.py
"""

import json
from collections.abc import Callable
from random import Random

from captions import BACKGROUNDS, STYLES, with_article
from captions import pluralise as plural
from make_sets import SETS

SEED = 22
COLOURS = [name for name in BACKGROUNDS if name not in ("white", "gray")]


def on(colour: str) -> str:
    return f"on {with_article(colour)} background"


def draw_background(names: list[str], rng: Random) -> dict:
    colour = rng.choice(COLOURS)
    return {"prompt": f"{with_article(names[0])} {on(colour)}", "check": {"background": colour}}


def draw_order(names: list[str], rng: Random) -> dict:
    first, second = names[:2]
    relation = rng.choice(("above", "below"))
    top, bottom = (first, second) if relation == "above" else (second, first)
    prompt = f"{with_article(first)} {relation} {with_article(second)}"
    return {"prompt": prompt, "check": {"top": top, "bottom": bottom}}


def draw_pair(names: list[str], rng: Random) -> dict:
    first, second = names[:2]
    prompt = f"{with_article(first)} {rng.choice(('beside', 'next to'))} {with_article(second)}"
    return {"prompt": prompt, "check": {"sides": [first, second]}}


def draw_order_on_background(names: list[str], rng: Random) -> dict:
    entry, colour = draw_order(names, rng), rng.choice(COLOURS)
    check = {**entry["check"], "background": colour}
    return {"prompt": f"{entry['prompt']} {on(colour)}", "check": check}


def draw_count(names: list[str], rng: Random) -> dict:
    colour, count = rng.choice(COLOURS), rng.choice(("two", "three", "four"))
    prompt = f"{count} {plural(names[0])} {on(colour)}"
    return {"prompt": prompt, "check": {"background": colour}}


def draw_style(names: list[str], rng: Random) -> dict:
    colour, style = rng.choice(COLOURS), rng.choice(STYLES)
    prompt = f"{with_article(style + ' picture')} of {with_article(names[0])} {on(colour)}"
    return {"prompt": prompt, "check": {"background": colour}}


KINDS: dict[Callable[[list[str], Random], dict], int] = {
    draw_background: 20,
    draw_order: 20,
    draw_pair: 20,
    draw_order_on_background: 15,
    draw_count: 10,
    draw_style: 15,
}


def main() -> None:
    """Write the suite."""
    rng = Random(SEED)
    classes = [line.split("\t")[0] for line in (SETS / "classes.txt").read_text().splitlines()]
    vocabulary = [
        line.split("\t")[0] for line in (SETS / "vocabulary.txt").read_text().splitlines()
    ]
    names = [name for name in classes if name not in vocabulary and len(name.split()) <= 2]
    entries = []
    for draw, n in KINDS.items():
        for _ in range(n):
            kind = draw.__name__.removeprefix("draw_")
            entries.append({"kind": kind, **draw(rng.sample(names, 2), rng)})
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (SETS / "complex_prompts.jsonl").write_text(text)


if __name__ == "__main__":
    main()
