"""Write the fixed sets that every evaluation of the embedded model uses.

The sets are small text files in `scripts/embedded/sets`, drawn from the data set of `data.py` with
a fixed seed and committed, so that results stay comparable:

    python scripts/embedded/make_sets.py --data build/emoji
"""

import argparse
import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

from captions import VOCABULARY, head, with_article

SEED = 20
SETS = Path(__file__).parent / "sets"

PROMPTS = (
    "red apple",
    "cat",
    "house",
    "rose",
    "rocket",
    "hamburger",
    "butterfly",
    "umbrella",
    "tropical fish",
    "crown",
)
"""Names of the main job's ten concepts; all of them are also in the ranking and retrieval sets."""

FACES = (
    "angry face",
    "clown face",
    "ghost",
    "loudly crying face",
    "robot",
    "sleeping face",
    "smiling face with sunglasses",
    "zipper-mouth face",
)
PEOPLE = ("baby", "firefighter", "mermaid", "person surfing", "princess", "santa claus", "vampire")

EXCLUDED_GROUPS = {"flag", "symbol", "clock", "face", "person", "body part"}
CONFUSABLE = re.compile(
    r"oncoming|moon|behind|mailbox|tilted|speaker|volume|calendar|postal|chart|banknote|yen"
    r"|medal$|envelope|tray|folder|locked|globe|tram|rail|train|metro|japanese|\bwomans|\bmans"
    r"|nose|prints|symbol|ball$|suit$|hand|fist|fingers|index|gesture|monkey|joy|grinning|weary"
    r"|wry|crying|pouting|kissing|heart-eyes|file|page|memo|bookmark|notebook|ledger|pen\b|nib"
    r"|camel|water buffalo|^ox|boar|ewe|rat$|chick$|performing|station|foggy|night|cityscape"
    r"|standing|sitting|rosette|kaaba|hotel|decoration|growing|beating|revolving|two |love|slider"
    r"|voltage|label|disk|selfie|^melon|oden|clutch|tumbler|poultry|national|office|drink|bags?$"
    r"|^books?$|green book|orange book|carousel|fog$|speech|balloon |construction|^wood|^rock$"
    r"|salute|funeral|antenna|snow-capped|mount fuji|film|telephone rec|^houses|tanabata|alembic"
    r"|^headphone|^link$|clamp|camping|milky|flatbread|hot springs"
)
"""Names that a picture at 64 px hardly tells from another concept's."""

QUOTAS = {"heart": 3, "building": 8, "place": 6, "sport": 4, "game": 4, "hand": 3}
"""Most concepts of a group; other groups are open."""


def read_rows(folder: Path) -> list[dict]:
    """Read the rows of the data set."""
    return [json.loads(line) for line in (folder / "drawings.jsonl").read_text().splitlines()]


def write(name: str, lines: list[str]) -> None:
    """Write lines to a file of the sets' folder."""
    (SETS / name).write_text("".join(line + "\n" for line in lines))
    print(f"{name}: {len(lines)}")


def candidates(rows: list[dict]) -> dict[str, dict]:
    """Return one row for every distinct concept that five styles or more draw in training."""
    styles = defaultdict(set)
    for row in rows:
        if row["split"] == "train" and row["vocabulary"] is None:
            styles[row["name"]].add(row["style"])
    first = {row["name"]: row for row in reversed(rows)}
    found = {}
    for name in sorted(styles):
        chosen = name in FACES or name in PEOPLE or name in PROMPTS
        plain = (
            first[name]["group"] not in EXCLUDED_GROUPS
            and not CONFUSABLE.search(name)
            and len(name.split()) <= 2
            and f"{name} face" not in styles
            and not name.endswith("face")
        )
        if len(styles[name]) >= 5 and (chosen or plain):
            found[name] = first[name]
    missing = set(PROMPTS) - set(found)
    assert not missing, missing
    return found


def draw_concepts(found: dict[str, dict], rng: Random, n: int) -> list[str]:
    """Draw `n` names, the prompts first: one a head noun, at most the quota of its group."""
    names = [name for name in found if name not in PROMPTS]
    rng.shuffle(names)
    drawn, heads, groups = [], set(), Counter()
    for name in [*PROMPTS, *names]:
        group = found[name]["group"]
        noun = head(name) if group not in ("heart", "face") else name
        if noun in heads or groups[group] >= QUOTAS.get(group, n):
            continue
        drawn.append(name)
        heads.add(noun)
        groups[group] += 1
    assert len(drawn) >= n, len(drawn)
    return drawn[:n]


def draw_unseen(rows: list[dict], rng: Random, n: int) -> list[str]:
    """Draw `n` unseen ids without replacement at their weights (Efraimidis and Spirakis 2006)."""
    rows = [row for row in rows if row["split"] == "unseen"]
    rows.sort(key=lambda row: rng.random() ** (1 / row["weight"]), reverse=True)
    return sorted(row["id"] for row in rows[:n])


def main() -> None:
    """Write every set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("build/emoji"))
    rows = read_rows(parser.parse_args().data)
    rng = Random(SEED)
    SETS.mkdir(exist_ok=True)
    found = candidates(rows)
    concepts = draw_concepts(found, rng, 100)
    captions = [with_article(name) for name in concepts]
    write("retrieval_captions.txt", captions)
    write(
        "retrieval_concepts.txt",
        [f"{c}\t{found[name]['hexcode']}" for c, name in zip(captions, concepts, strict=True)],
    )
    write("ranking_captions.txt", captions[:50])
    write("prompts.txt", captions[:10])
    write("vocabulary.txt", [f"{word}\t{prompt}" for word, (prompt, _) in VOCABULARY.items()])
    write("unseen.txt", draw_unseen(rows, rng, 200))
    classes = {word: ",".join(codes) for word, (_, codes) in VOCABULARY.items()}
    train = [row for row in rows if row["split"] == "train"]
    halves = Counter((row["name"], row["half"]) for row in train)
    both = [name for name in concepts if halves[name, "A"] and halves[name, "B"]]
    classes |= {name: found[name]["hexcode"] for name in both[:88]}
    for name in classes:
        assert min(halves[name, "A"], halves[name, "B"]) > 0, name
        assert halves[name, "A"] + halves[name, "B"] >= 5, name
    write("classes.txt", [f"{name}\t{codes}" for name, codes in classes.items()])


if __name__ == "__main__":
    main()
