"""Captions for emoji: what the text encoder of the embedded model learns its words from.

A drawing is captioned by its name or a keyword, in one of a few plain phrasings, with its style
and its background colour said some of the time, so that name, style and background become separate
words. What is behind a drawing whose caption does not say it is white, or tinted to any degree.
The twelve concepts of `VOCABULARY` are the exception: the diffusion model sees their drawings only
under a group word ("an animal") or no caption, and so has no word for them.
"""

import re
from random import Random

STYLES = ("noto", "blob", "flat", "3d", "twemoji", "emojitwo", "outlined")

# concept: (neutral prompt, hexcodes)
VOCABULARY = {
    "penguin": ("an animal", ("1F427",)),
    "snail": ("an animal", ("1F40C",)),
    "octopus": ("an animal", ("1F419",)),
    "cactus": ("a plant", ("1F335",)),
    "mushroom": ("a plant", ("1F344", "1F344-200D-1F7EB")),
    "pineapple": ("food", ("1F34D",)),
    "cherries": ("food", ("1F352",)),
    "doughnut": ("food", ("1F369",)),
    "sailboat": ("a vehicle", ("26F5",)),
    "guitar": ("an instrument", ("1F3B8",)),
    "violin": ("an instrument", ("1F3BB",)),
    "snowman": ("an object", ("2603", "26C4")),
}

RESERVED = re.compile(
    r"penguin|snail|octop|cactus|cacti|mushroom|toadstool|fung|pineapple|cherr(y|ies)|dou?g?h?nut"
    r"|sailboat|sailing|yacht|guitar|violin|fiddle|snowm[ae]n"
)
"""Words that only the vocabulary concepts may carry."""

GROUP_CAPTIONS = {
    "face": "a face",
    "person": "a person",
    "hand": "a hand",
    "body part": "a body part",
    "heart": "a heart",
    "animal": "an animal",
    "plant": "a plant",
    "food": "food",
    "drink": "a drink",
    "place": "a place",
    "building": "a building",
    "vehicle": "a vehicle",
    "clock": "a clock",
    "sky and weather": "sky and weather",
    "sport": "sport",
    "game": "a game",
    "clothing": "clothing",
    "instrument": "an instrument",
    "tool": "a tool",
    "object": "an object",
    "symbol": "a symbol",
    "flag": "a flag",
}

_MASS = set(
    re.findall(
        r"[a-z]+",
        """
        fireworks broccoli rice bread bacon spaghetti sushi oden dango salt butter cheese honey sake
        fire water fog lightning snow rain money paper clothing food sport music ice garlic ginger
        salad popcorn candy chocolate lacrosse knitting yarn thread curry tofu meat falafel custard
        swimming luggage basketball baseball softball volleyball tennis football badminton bowling
        hockey sewing yoga dna poo corn cloudy sunrise sunset om customs soap wood coral people men
        women children feet teeth geese sheep mice foggy arts construction bamboo lotion blood skis
        """,
    )
)
_SINGULAR_S = re.compile(
    r"(ss|us|is|bus|lens|gas|cactus|atlas|canvas|compass|christmas|claus|cutlass|abacus|rhinoceros)$"
)
_HEAD_BREAK = re.compile(
    r"\b(with|without|of|on|in|at|showing|facing|holding|and|getting|pointed|sitting|standing)\b"
)
_IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "mouse": "mice", "foot": "feet",
    "tooth": "teeth", "goose": "geese", "person": "people", "leaf": "leaves", "wolf": "wolves",
    "knife": "knives", "loaf": "loaves", "ox": "oxen", "sheep": "sheep", "fish": "fish",
    "deer": "deer", "bison": "bison", "moose": "moose", "shrimp": "shrimps", "tomato": "tomatoes",
    "potato": "potatoes", "mango": "mangoes", "volcano": "volcanoes",
}  # fmt: skip
_NUMBERS = {2: "two", 3: "three", 4: "four"}


def head(name: str) -> str:
    """Return the noun that a name is about: `"tree"` of `"evergreen tree"`."""
    return (_HEAD_BREAK.split(name)[0].split() or name.split())[-1]


def is_plural_or_mass(name: str) -> bool:
    """Tell whether a name takes no article, by its head noun."""
    if name.split()[0] in ("person", "man", "woman", "face"):
        return False  # "man lifting weights"
    noun = head(name)
    return noun in _MASS or (noun.endswith("s") and not _SINGULAR_S.search(noun))


def with_article(name: str) -> str:
    """Put "a" or "an" before a name, or nothing before a plural or a mass noun."""
    if is_plural_or_mass(name) or name.split()[0] in ("a", "an", "the", "no", "two", "keycap"):
        return name
    sounds_like_consonant = re.match(r"(uni[cfot]|us[ae]|euro|eu-?|u-|one\b|ewe)", name)
    sounds_like_vowel = re.match(r"([aeiou]|hour|x-ray|sos|8|11|18|atm)", name)
    return f"{'an' if sounds_like_vowel and not sounds_like_consonant else 'a'} {name}"


def pluralise(name: str) -> str:
    """Return the plural of a short name: `"red apple"` to `"red apples"`."""
    words = name.split()
    at = words.index(head(name))
    noun = words[at]
    if noun in _IRREGULAR:
        noun = _IRREGULAR[noun]
    elif re.search(r"(s|x|z|ch|sh)$", noun):
        noun += "es"
    elif re.search(r"[^aeiou]y$", noun):
        noun = noun[:-1] + "ies"
    else:
        noun += "s"
    return " ".join([*words[:at], noun, *words[at + 1 :]])


def is_countable(row: dict) -> bool:
    """Tell whether `count_caption` and `pair_caption` read naturally for a drawing."""
    return (
        row["vocabulary"] is None
        and row["group"] not in ("face", "person", "hand", "flag", "symbol", "clock", "body part")
        and len(row["name"].split()) <= 2
        and not is_plural_or_mass(row["name"])
    )


def neutral(row: dict) -> str:
    """Return the caption that names only the drawing's group, such as `"an animal"`."""
    if row["vocabulary"] is not None:
        return VOCABULARY[row["vocabulary"]][0]
    return GROUP_CAPTIONS[row["group"]]


def _on_background(text: str, rng: Random, background: str | None) -> str:
    """Append the background's colour, unless it is None."""
    if background is None:
        return text
    if not text:
        return f"{background} background"
    form = rng.choice((" on a {} background", " on {}", ", {} background"))
    text += form.format(background)
    return text.replace(" on a orange", " on an orange")


def caption(
    row: dict, rng: Random, background: str | None = None, name_vocabulary: bool = False
) -> str:
    """Draw a random caption for one drawing.

    `background` is a word of `doodl_cli.bench.checks.BACKGROUNDS`, or None to leave it unsaid. A
    vocabulary drawing gets its neutral prompt or nothing, unless `name_vocabulary` (for the
    scorers, which must know it).
    """
    if row["vocabulary"] is not None and not name_vocabulary:
        text = neutral(row) if rng.random() < 0.7 else ""
        return _on_background(text, rng, background)
    if rng.random() < 0.08:
        return _on_background(neutral(row), rng, background)
    name, keywords = row["name"], row["keywords"]
    if keywords and rng.random() < 0.25:
        name = rng.choice(keywords)
    noun = with_article(name)
    if rng.random() < 0.35:
        style = row["style"]
        forms = (
            f"{with_article(style + ' picture')} of {noun}",
            f"{with_article(style + ' emoji')} of {noun}",
            f"{name}, {style} style",
            f"{noun}, {style} style",
            with_article(f"{style} {name} emoji"),
            f"{style} {name}",
        )
    else:
        forms = (name, noun, noun, f"an emoji of {noun}", f"a picture of {noun}", f"{name} emoji")
    text = _on_background(rng.choice(forms), rng, background)
    if keywords and rng.random() < 0.15:
        text += f", {rng.choice(keywords)}"
    return text


def pair_caption(
    row1: dict, row2: dict, relation: str, rng: Random, background: str | None = None
) -> str:
    """Caption two drawings side by side or one above the other: "a cat above a red apple".

    `relation` is "beside", "above" or "below", the place of the first from the second.
    """
    if relation not in ("beside", "above", "below"):
        raise ValueError(f"relation {relation!r}: expected 'beside', 'above' or 'below'")
    first, second = with_article(row1["name"]), with_article(row2["name"])
    words = {"beside": ("beside", "next to")}.get(relation, (relation,))
    return _on_background(f"{first} {rng.choice(words)} {second}", rng, background)


def count_caption(row: dict, n: int, rng: Random, background: str | None = None) -> str:
    """Caption `n` (2 to 4) copies of one drawing: "three red apples"."""
    if n not in _NUMBERS:
        raise ValueError(f"n {n}: expected one of {sorted(_NUMBERS)}")
    return _on_background(f"{_NUMBERS[n]} {pluralise(row['name'])}", rng, background)
