"""Write the embedded model's suites of `doodl bench`, doodl_cli/assets/suites, with fixed seeds.

    complex     100 prompts with backgrounds, relations, counts and styles, 6 seeds each: DrawBench
                in small
    vocabulary  12 concepts that the text encoder has no word for, 8 seeds each, and real drawings
                of them, for the Frechet distance
    references  50 drawings over a colour, each with its concept's caption
    aesthetic   100 captions, 3 seeds each

A row's `check` is what can be read off the picture without a judge. tuning/ has what methods are
tuned on: prompts, seeds, pictures and classes that are in none of the suites.

    python scripts/embedded/make_suites.py --data build/emoji

With `--further FILE` it writes nothing but that: about seven times as many complex prompts, a seed
each, of which none is in a suite or in tuning/. With `suite.parts.complex.path=FILE` they are what
`doodl bench suite=complex` compares methods on, where a hundred prompts are too few.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from captions import GROUP_CAPTIONS, STYLES, VOCABULARY, with_article
from captions import pluralise as plural
from data import load
from pictures import CLOSE, draw_background, read_set
from PIL import Image

from doodl_cli.bench.checks import BACKGROUNDS

SUITES = Path(__file__).parents[2] / "doodl_cli/assets/suites"
SEED, SEED_OF_REFERENCES, SEED_OF_DRAWINGS, SEED_OF_TUNING, SEED_OF_FURTHER = 22, 21, 23, 24, 25
N_SEEDS = {
    "vocabulary": 8,
    "complex": 6,
    "aesthetic": 3,
    "tuning/vocabulary": 8,
}
FIRST_TUNING_SEED, FIRST_FURTHER_SEED = 10_000, 20_000
N_FURTHER = 7  # times the prompts of the suite
COLOURS = [name for name in BACKGROUNDS if name not in ("white", "gray")]
TUNING_CLASSES = (  # of the groups of VOCABULARY, about in its shares
    "cat", "dolphin", "turtle", "owl",
    "rose", "sunflower", "hibiscus",
    "hamburger", "grapes", "shortcake", "tangerine",
    "motorcycle", "ship",
    "saxophone", "drum",
    "television",
)  # fmt: skip


def on(colour: str) -> str:
    return f"on {with_article(colour)} background"


def draw_single(names: list[str], rng: Random) -> dict:
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


KINDS: dict[str, tuple[Callable[[list[str], Random], dict], int]] = {
    "background": (draw_single, 20),
    "order": (draw_order, 20),
    "pair": (draw_pair, 20),
    "order_on_background": (draw_order_on_background, 15),
    "count": (draw_count, 10),
    "style": (draw_style, 15),
}


def read_classes() -> list[str]:
    """Return the names of the held-out classifier's classes that a prompt of two may use."""
    classes = [line.split("\t")[0] for line in read_set("classes.txt")]
    return [name for name in classes if name not in VOCABULARY and len(name.split()) <= 2]


def make_complex(seed: int, times: int = 1) -> list[dict]:
    """Return complex prompts of every kind."""
    rng, names = Random(seed), read_classes()
    rows = []
    for kind, (draw, n) in KINDS.items():
        for _ in range(times * n):
            rows.append({"kind": kind, **draw(rng.sample(names, 2), rng)})
    return rows


def make_further() -> list[dict]:
    """Return complex prompts that differ from each other and from those of the suites."""
    files = (SUITES / f"{name}.jsonl" for name in ("complex", "tuning/complex"))
    taken = {json.loads(line)["prompt"] for file in files for line in file.open()}
    rows = {row["prompt"]: row for row in make_complex(SEED_OF_FURTHER, N_FURTHER)}
    return [row for prompt, row in rows.items() if prompt not in taken]


def make_vocabulary() -> list[dict]:
    """Return each concept's neutral prompt with every seed."""
    return [
        {"prompt": prompt, "seed": seed, "target": name, "check": {"class": name}}
        for name, (prompt, _) in VOCABULARY.items()
        for seed in range(N_SEEDS["vocabulary"])
    ]


def make_references(
    folder: Path, rgba: np.ndarray, rows: list[dict], lines: list[str], rng: Random
) -> list[dict]:
    """Draw one drawing of each concept over a colour, and return the suite's rows."""
    folder.mkdir(parents=True)
    suite = []
    for k, line in enumerate(lines):
        caption, code = line.split("\t")
        index = rng.choice([i for i, row in enumerate(rows) if row["hexcode"] == code])
        mean = mean_colour(rgba[index])
        far = [c for c in BACKGROUNDS.values() if np.linalg.norm(mean - c) > CLOSE]
        save(folder / f"{k:02}.png", rgba[index], rng.choice(far))
        image = f"{folder.name}/{k:02}.png"
        suite.append({"prompt": caption, "image": image, "source": rows[index]["id"]})
    return suite


def mean_colour(drawing: np.ndarray) -> np.ndarray:
    """Return the mean colour (3,) of a drawing (h, w, 4)."""
    colour, alpha = drawing[..., :3].astype(float), drawing[..., 3:] / 255
    return (colour * alpha).sum((0, 1)) / alpha.sum()


def save(path: Path, drawing: np.ndarray, background: tuple[int, ...]) -> None:
    """Write a drawing (h, w, 4) over a colour."""
    colour, alpha = drawing[..., :3].astype(float), drawing[..., 3:] / 255
    picture = colour * alpha + np.array(background) * (1 - alpha)
    Image.fromarray(picture.round().astype(np.uint8)).save(path, optimize=True)


def draw_real(folder: Path, rgba: np.ndarray, rows: list[dict], rng: Random) -> None:
    """Write every drawing of the vocabulary's concepts, over what the noise may make of it."""
    folder.mkdir(parents=True)
    for name, (_, codes) in VOCABULARY.items():
        found = [i for i, row in enumerate(rows) if row["hexcode"] in codes]
        for k, index in enumerate(found):
            said = "said"
            while said is not None:  # a background that the caption leaves open
                said, background = draw_background(rng, mean_colour(rgba[index])[None])
            save(folder / f"{name}-{k:02}.png", rgba[index], background)


def write(name: str, rows: list[dict], first_seed: int = 0) -> None:
    """Write a suite; a row without a seed gets its number."""
    write_rows(SUITES / f"{name}.jsonl", rows, first_seed)
    print(f"{name}: {len(rows)}")


def write_rows(path: Path, rows: list[dict], first_seed: int) -> None:
    """Write rows to a file; one without a seed gets its number."""
    seeded = [{"seed": first_seed + k, **row} for k, row in enumerate(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in seeded))


def make_tuning(rgba: np.ndarray, rows: list[dict]) -> None:
    """Write what methods are tuned on: a hundred noises or more, and of the references 48."""
    captions = read_set("retrieval_captions.txt")
    names = sorted({row["name"] for row in rows if row["split"] == "train"} - set(VOCABULARY))
    names = [name for name in names if with_article(name) not in captions]
    names = [name for name in names if len(name.split()) <= 2 and name.isascii()]
    rng = Random(SEED_OF_TUNING)
    rng.shuffle(names)
    write("tuning/complex", make_complex(SEED_OF_TUNING), FIRST_TUNING_SEED)
    group = {row["name"]: row["group"] for row in rows}
    classes = [
        {"prompt": GROUP_CAPTIONS[group[name]], "target": name, "check": {"class": name}}
        for name in TUNING_CLASSES
        for _ in range(N_SEEDS["tuning/vocabulary"])
    ]
    write("tuning/vocabulary", classes, FIRST_TUNING_SEED)
    codes = {row["name"]: row["hexcode"] for row in rows}
    lines = [f"{with_article(name)}\t{codes[name]}" for name in names[:16]]
    folder = SUITES / "tuning/references"
    references = make_references(folder, rgba, rows, lines, rng)
    write("tuning/references", [row for row in references for _ in range(3)], FIRST_TUNING_SEED)
    aesthetic = [{"prompt": with_article(name)} for name in names[16:116]]
    write("tuning/aesthetic", aesthetic, FIRST_TUNING_SEED)


def main() -> None:
    """Write every suite."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("build/emoji"))
    parser.add_argument("--further", type=Path, help="file of further complex prompts, alone")
    args = parser.parse_args()
    if args.further:
        write_rows(args.further, make_further(), FIRST_FURTHER_SEED)
        return
    rgba, rows = load(args.data)
    for folder in [path for path in SUITES.iterdir() if path.is_dir()]:  # tuned.json stays
        shutil.rmtree(folder)
    write("complex", N_SEEDS["complex"] * make_complex(SEED))
    write("vocabulary", make_vocabulary())
    draw_real(SUITES / "vocabulary", rgba, rows, Random(SEED_OF_DRAWINGS))
    lines = read_set("retrieval_concepts.txt")[:50]
    folder = SUITES / "references"
    write("references", make_references(folder, rgba, rows, lines, Random(SEED_OF_REFERENCES)))
    captions = [{"prompt": caption} for caption in read_set("retrieval_captions.txt")]
    write("aesthetic", N_SEEDS["aesthetic"] * captions)
    make_tuning(rgba, rows)


if __name__ == "__main__":
    main()
