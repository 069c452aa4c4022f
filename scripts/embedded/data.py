"""Build the emoji data set of the embedded model from openly licensed npm packages.

Seven sets of emoji are rasterised to 64 x 64 RGBA: 240 px vector renderings (256 px pictures for
the 3d set) reduced with premultiplied alpha to 60 px on a 64 px canvas. Keeping alpha makes a
picture over any background colour exact. Only the toneless drawing of an emoji is kept; mirrored
copies and near-duplicates within a style are dropped. Near-duplicates across styles share their
hashed `split` and `half`, so that an unseen drawing has no twin among the training drawings, and
`class_half`, which divides each concept's drawings evenly.

    python scripts/embedded/data.py --out build/emoji
"""

import argparse
import hashlib
import io
import json
import re
import subprocess
import tarfile
import unicodedata
from collections import Counter, defaultdict
from multiprocessing import Pool
from pathlib import Path

import numpy as np
from captions import GROUP_CAPTIONS, RESERVED, STYLES, VOCABULARY
from PIL import Image

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "blob": "@iconify-json/noto-v1@1.2.5",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "emojitwo": "@iconify-json/emojione@1.2.3",
    "outlined": "@iconify-json/streamline-emojis@1.2.4",
    "emojibase": "emojibase-data@17.0.0",
    "emojilib": "emojilib@4.0.3",
}

RENDERED, DRAWN, CANVAS = 240, 60, 64  # pixels
DUPLICATE = 0.03  # RMS difference of two thumbnails below which only one drawing is kept
TWIN = 0.05  # RMS difference below which two drawings share split and half

GROUPS = {
    "face": "face",
    "cat-face": "animal",
    "monkey-face": "animal",
    "heart": "heart",
    "emotion": "symbol",
    "hand": "hand",
    "hands": "hand",
    "body-parts": "body part",
    "person": "person",
    "family": "person",
    "person-symbol": "symbol",
    "animal": "animal",
    "plant": "plant",
    "food": "food",
    "drink": "drink",
    "place-map": "place",
    "place-geographic": "place",
    "place-building": "building",
    "place-religious": "building",
    "place-other": "place",
    "transport": "vehicle",
    "transport-sign": "symbol",
    "time": "clock",
    "sky-weather": "sky and weather",
    "sport": "sport",
    "game": "game",
    "clothing": "clothing",
    "musical-instrument": "instrument",
    "tool": "tool",
}
"""Group word of an emojibase subgroup, or of its first part; other objects are "object"."""

WEIGHTS = {"person": 0.7, "hand": 0.7, "body part": 0.7, "symbol": 0.5, "flag": 0.3}

# Names that older releases of CLDR, or a set of its own accord, gave to an emoji.
OLD_NAMES = {
    "asterisk": "002A-20E3", "pound-symbol": "0023-20E3", "digit-zero": "0030-20E3",
    "digit-one": "0031-20E3", "digit-two": "0032-20E3", "digit-three": "0033-20E3",
    "digit-four": "0034-20E3", "digit-five": "0035-20E3", "digit-six": "0036-20E3",
    "digit-seven": "0037-20E3", "digit-eight": "0038-20E3", "digit-nine": "0039-20E3",
    "a-button": "1F170", "ab-button": "1F18E", "b-button": "1F171", "o-button": "1F17E",
    "up-text-button": "1F199", "ballot-box-with-check": "2611", "heavy-check-mark": "2714",
    "white-heavy-check-mark": "2705", "heavy-division-sign": "2797", "heavy-minus-sign": "2796",
    "heavy-multiplication-x": "2716", "heavy-plus-sign": "2795", "heavy-large-circle": "2B55",
    "heavy-heart-exclamation": "2763", "exclamation-mark": "2757", "question-mark": "2753",
    "direct-hit": "1F3AF", "dizzy-face": "1F635", "crazy-face": "1F92A", "wolf-face": "1F43A",
    "laptop-computer": "1F4BB", "school-backpack": "1F392", "game-dice": "1F3B2",
    "red-wine-glass": "1F377", "gesturing-ok": "1F646", "blond-haired-person": "1F471",
    "bride-with-veil": "1F470", "man-with-chinese-cap": "1F472",
    "man-and-woman-holding-hands": "1F46B", "two-men-holding-hands": "1F46C",
    "two-women-holding-hands": "1F46D", "flag-for-black-flag": "1F3F4",
    "flag-for-chequered-flag": "1F3C1", "flag-for-crossed-flags": "1F38C",
    "flag-for-rainbow-flag": "1F3F3-200D-1F308", "flag-for-triangular-flag": "1F6A9",
    "flag-for-white-flag": "1F3F3",
}  # fmt: skip

# Labels whose cleaning by rule would read badly, or would spend a word of the vocabulary.
NAMES = {
    "cherry blossom": "pink blossom",
    "A button (blood type)": "blood type a button",
    "AB button (blood type)": "blood type ab button",
    "B button (blood type)": "blood type b button",
    "O button (blood type)": "blood type o button",
    "keycap: #": "keycap hash",
    "keycap: *": "keycap asterisk",
    "kiss: woman, man": "woman and man kissing",
    "kiss: man, man": "two men kissing",
    "kiss: woman, woman": "two women kissing",
    "couple with heart: woman, man": "woman and man with heart",
    "couple with heart: man, man": "two men with heart",
    "couple with heart: woman, woman": "two women with heart",
    "cat": "cat sitting",
    "cat face": "cat",
    "dog": "dog standing",
    "dog face": "dog",
}

# Keywords that name nothing one could see.
JUNK = set(
    re.findall(
        r"[a-z0-9-]+",
        """
        the and you for not yes yup yolo nope omg lol rofl lmao bff bae btw ftw gtg ttyl ttfn cya
        hey hello goodbye bye outtie bless legit dope lit sus slay yass facts awesome awww ugh whoa
        wow meh oops ooh duh eek yum yikes huh nah bro sup later with too one two three four five
        six seven eight nine ten eleven twelve thirty unified shrek nation country banner indicator
        letters regional symbol meaning operating u55b6 emoji icon this that what who are can will
        have has was did does forbidden facebook google twitter sign photo blue-square red-square
        purple-square green-square orange-square late early activity activities schedule human
        words word good done like use made showing under behind first back left right high low
        open closed medium new well feels ily adorbs sexy hehe haha woohoo circus ornithology
        animals facing-right move moving way away out off over into drove arrived union done
        kikukawa mojito colada pina hashi jeotgarak kuaizi hocho schmear comic prohibited
        """,
    )
)


def fetch(folder: Path) -> dict[str, dict[str, bytes]]:
    """Download the packages into `folder` once; return each one's files by path."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {}
    for key, package in PACKAGES.items():
        archive = folder / (re.sub(r"[@/]+", "-", package).strip("-") + ".tgz")
        if not archive.exists():
            command = ["npm", "pack", package, "--silent", "--pack-destination", str(folder)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(archive) as tar:
            contents[key] = {
                member.name.removeprefix("package/"): tar.extractfile(member).read()
                for member in tar
                if member.isfile()
            }
    return contents


def normalise(hexcode: str) -> str:
    """Return a hexcode in upper case without variation selectors."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def plain(text: str) -> str:
    """Return text in lower-case ASCII words; hyphens stay."""
    text = unicodedata.normalize("NFKD", text.replace("&", " and ").replace("\u2019", ""))
    text = text.encode("ascii", "ignore").decode().lower()
    return " ".join(re.sub(r"[^a-z0-9 -]+", " ", text.replace("'", "")).split())


def clean_name(label: str, subgroup: str) -> str:
    """Turn a CLDR label into plain words: "flag: Italy" to "flag of italy"."""
    if label in NAMES:
        return NAMES[label]
    if subgroup == "time" and ("o\u2019clock" in label or "-thirty" in label):
        return "clock face at " + plain(label.removesuffix(" o\u2019clock"))
    kind, colon, detail = label.partition(": ")
    if not colon:
        return plain(label)
    if kind == "family":
        *others, last = detail.split(", ")
        return plain(f"family of {' '.join(others)} and {last}")
    if kind == "flag":
        return plain(f"flag of {detail}")
    if detail == "bald":
        return plain(f"bald {kind}")
    if detail == "beard":
        return plain(f"{kind} with a beard")
    if "hair" in detail:
        return plain(f"{kind} with {detail}")
    return plain(f"{kind} {detail}")


def choose_keywords(tags: list[str], more: list[str], name: str, common: Counter) -> list[str]:
    """Pick up to six keywords: those that both sources give first, then the more common ones."""
    tags, more = [plain(tag.replace("_", " ")) for tag in tags], [plain(w) for w in more]
    both = set(tags) & set(more)
    words = sorted(dict.fromkeys(tags + more), key=lambda w: (w not in both, w not in tags))
    return [
        word
        for word in words
        if re.fullmatch(r"[a-z][a-z-]{2,}( [a-z]{3,})?", word)
        and word != name
        and word not in JUNK
        and (common[word] >= 3 or word in both)
        and not RESERVED.search(word)
    ][:6]


def describe(contents: dict[str, dict[str, bytes]]) -> dict[str, dict]:
    """Return name, keywords, group, vocabulary and weight of every toneless emoji, in order."""
    emojis = json.loads(contents["emojibase"]["en/data.json"])
    subgroups = json.loads(contents["emojibase"]["meta/groups.json"])["subgroups"]
    library = json.loads(contents["emojilib"]["dist/emoji-en-US.json"])
    library = {emoji.replace("\ufe0f", ""): words for emoji, words in library.items()}
    vocabulary = {code: word for word, (_, codes) in VOCABULARY.items() for code in codes}
    more = {e["hexcode"]: library.get(e["emoji"].replace("\ufe0f", ""), [])[1:] for e in emojis}
    common = Counter(
        plain(word)
        for e in emojis
        for word in {*e.get("tags", []), *more[e["hexcode"]], *e["label"].split()}
    )
    concepts = {}
    for emoji in sorted(emojis, key=lambda e: e.get("order", 0)):
        if emoji.get("group") in (None, 2) or emoji["label"].endswith("facing right"):
            continue  # regional indicators and skin tones; mirrored copies
        subgroup = subgroups[str(emoji["subgroup"])]
        code = normalise(emoji["hexcode"])
        word = vocabulary.get(code)
        group = GROUPS.get(subgroup) or GROUPS.get(subgroup.split("-")[0], "object")
        if emoji["group"] in (8, 9):
            group = {8: "symbol", 9: "flag"}[emoji["group"]]
        if word:
            group = VOCABULARY[word][0].removeprefix("an ").removeprefix("a ")
        name = word or clean_name(emoji["label"], subgroup)
        concepts[code] = {
            "name": name,
            "keywords": choose_keywords(
                emoji.get("tags", []), more[emoji["hexcode"]], name, common
            ),
            "group": group,
            "subgroup": subgroup,
            "vocabulary": word,
            "weight": WEIGHTS.get(group, 1.0),
        }
    return concepts


def slug(text: str) -> str:
    """Return an icon's name for a label, as Iconify spells it."""
    return re.sub(r"[^a-z0-9]+", "-", plain(text)).strip("-")


def name_index(contents: dict[str, dict[str, bytes]]) -> dict[str, str]:
    """Map icon names to hexcodes, for the sets that do not carry code points."""
    index = {}
    for emoji in json.loads(contents["emojibase"]["en/data.json"]):
        index[slug(emoji["label"])] = normalise(emoji["hexcode"])
    for style in ("noto", "twemoji", "flat"):
        for hexcode, name in json.loads(contents[style]["chars.json"]).items():
            index.setdefault(name, normalise(hexcode))
    return index | OLD_NAMES


def find_hexcode(name: str, index: dict[str, str]) -> str | None:
    """Look an icon's name up, also under the forms that older names take."""
    forms = [
        name,
        name.replace("flag-for-flag-", "flag-").replace("flag-for-", "flag-"),
        name.replace("cat-face", "cat"),
        name.removesuffix("-face"),
        f"flag-{name}",
    ]
    return next((index[form] for form in forms if form in index), None)


def list_icons(style: str, contents: dict[str, dict[str, bytes]], index: dict[str, str]):
    """Yield (hexcode, variant, svg or picture bytes) of every drawing of a style.

    Only streamline draws an emoji several times; `variant` counts from 1.
    """
    if style == "3d":
        # Microsoft opened only what is also in the flat set; the package carries more.
        opened = {normalise(code) for code in json.loads(contents["flat"]["chars.json"])}
        for path, data in contents["3d"].items():
            code = normalise(Path(path).stem)
            if path.startswith("assets/") and code in opened:
                yield code, 1, data
        return
    icons = json.loads(contents[style]["icons.json"])
    named = json.loads(contents[style].get("chars.json", b"{}"))
    if named:
        pairs = [(normalise(code), name, 1) for code, name in named.items()]
    else:
        pairs = []
        for name, icon in icons["icons"].items():
            if icon.get("hidden") or "skin-tone" in name:
                continue
            code, variant = find_hexcode(name, index), 1
            if code is None and (match := re.fullmatch(r"(.+)-(\d)", name)):
                code, variant = find_hexcode(match[1], index), int(match[2])
            if code is not None:
                pairs.append((code, name, variant))
    for code, name, variant in pairs:
        name = icons.get("aliases", {}).get(name, {}).get("parent", name)
        icon = icons["icons"][name]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width = icon.get("width", icons.get("width", 16))
        height = icon.get("height", icons.get("height", 16))
        scale = RENDERED / max(width, height)
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{width * scale}" height="{height * scale}" '
            f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )
        yield code, variant, svg


def rasterise(source: str | bytes) -> np.ndarray:
    """Draw an svg or a picture at 60 px in the middle of a (64, 64, 4) uint8 canvas."""
    if isinstance(source, str):
        import resvg_py  # only the building of the data needs it, not `load`

        source = bytes(resvg_py.svg_to_bytes(svg_string=source, skip_system_fonts=True))
    picture = Image.open(io.BytesIO(source)).convert("RGBA")
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    small = square.resize((DRAWN, DRAWN), Image.Resampling.BOX)  # Pillow premultiplies alpha
    canvas = np.zeros((CANVAS, CANVAS, 4), np.uint8)
    edge = (CANVAS - DRAWN) // 2
    canvas[edge : edge + DRAWN, edge : edge + DRAWN] = np.asarray(small)
    canvas[canvas[..., 3] == 0] = 0
    return canvas


def encode(rgba: np.ndarray) -> bytes:
    """Return a drawing as lossless WebP."""
    blob = io.BytesIO()
    Image.fromarray(rgba).save(blob, "WEBP", lossless=True, quality=75, method=6)
    return blob.getvalue()


def thumbnails(rgba: np.ndarray) -> np.ndarray:
    """Reduce drawings to (n, 16, 16, 4) premultiplied values in [0, 1], for comparison."""
    small = np.empty((len(rgba), 16, 16, 4), np.float32)
    for i, drawing in enumerate(rgba):
        x = drawing.astype(np.float32) / 255
        x[..., :3] *= x[..., 3:]
        small[i] = x.reshape(16, 4, 16, 4, 4).mean((1, 3))
    return small


def close_pairs(a: np.ndarray, b: np.ndarray, limit: float) -> list[tuple[int, int]]:
    """List (i, j) whose thumbnails a[i] and b[j] differ by less than `limit` in RMS."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    norms = (b * b).sum(1)
    found = []
    for start in range(0, len(a), 1024):
        block = a[start : start + 1024]
        squared = (block * block).sum(1)[:, None] + norms - 2 * block @ b.T
        rows, columns = np.nonzero(squared < limit**2 * a.shape[1])
        found += zip((rows + start).tolist(), columns.tolist(), strict=True)
    return found


def drop_duplicates(rows: list[dict], small: np.ndarray) -> list[int]:
    """Return the indices to keep: no near-duplicate or mirrored copy within a style.

    The one with the shortest name stays (a cat, not a grinning cat). Arrows, hands, clocks and
    flags may mirror each other.
    """
    by_style = defaultdict(list)
    for i, row in enumerate(rows):
        by_style[row["style"]].append(i)
    kept = []
    for indices in by_style.values():
        indices.sort(key=lambda i: (len(rows[i]["name"].split()), i))
        x = small[indices]
        pairs = [(i, j, False) for i, j in close_pairs(x, x, DUPLICATE) if i < j]
        pairs += [(i, j, True) for i, j in close_pairs(x, x[:, :, ::-1], DUPLICATE) if i < j]
        dropped = set()
        for i, j, mirrored in sorted(pairs, key=lambda pair: (pair[1], pair[0])):
            a, b = rows[indices[i]], rows[indices[j]]
            if mirrored and b["group"] in ("symbol", "hand", "clock", "flag"):
                continue
            if a["vocabulary"] != b["vocabulary"]:
                raise ValueError(f"{a['id']} and {b['id']} look alike, one is vocabulary")
            if i not in dropped:
                dropped.add(j)
        kept += [index for i, index in enumerate(indices) if i not in dropped]
    return sorted(kept)


def twin_leaders(rows: list[dict], small: np.ndarray) -> list[int]:
    """Return for every drawing the first of its cluster of near-duplicates (union-find).

    The flat and the 3d set render the same Fluent designs, so their drawings of an emoji are twins.
    """
    leader = list(range(len(rows)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    pairs = close_pairs(small, small, TWIN) + close_pairs(small, small[:, :, ::-1], TWIN)
    index = {row["id"]: i for i, row in enumerate(rows)}
    for row in rows:
        if row["style"] == "3d" and (flat := f"flat/{row['hexcode']}") in index:
            pairs.append((index[flat], index[row["id"]]))  # the same drawing, shaded
    for i, j in pairs:
        a, b = sorted((find(i), find(j)))
        leader[b] = a
    return [find(i) for i in range(len(rows))]


def uniform(text: str) -> float:
    """Hash a text to [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def check(rows: list[dict]) -> None:
    """Assert that no drawing but its own spends a vocabulary word, and that captions are plain."""
    for row in rows:
        text = ", ".join([row["name"], *row["keywords"]])
        assert row["vocabulary"] is not None or not RESERVED.search(text), row
        assert re.fullmatch(r"[a-z0-9 ,-]+", text), row
        assert row["group"] in GROUP_CAPTIONS, row
    assert len({row["id"] for row in rows}) == len(rows)
    missing = set(VOCABULARY) - {row["vocabulary"] for row in rows}
    assert not missing, missing


def load(folder: str | Path) -> tuple[np.ndarray, list[dict]]:
    """Read the data set: drawings (n, 64, 64, 4) uint8, not premultiplied, and their rows."""
    folder = Path(folder)
    rows = [json.loads(line) for line in (folder / "drawings.jsonl").read_text().splitlines()]
    blobs = (folder / "drawings.bin").read_bytes()
    rgba = np.empty((len(rows), CANVAS, CANVAS, 4), np.uint8)
    for i, row in enumerate(rows):
        blob = blobs[row["offset"] : row["offset"] + row["length"]]
        rgba[i] = np.asarray(Image.open(io.BytesIO(blob)).convert("RGBA"))
    return rgba, rows


def over(rgba: np.ndarray, background) -> np.ndarray:
    """Composite drawings over a colour: rgb = alpha c + (1 - alpha) background.

    `rgba` is (..., h, w, 4) uint8; `background` is an rgb triple in 0..255, or an array that
    broadcasts with (..., h, w, 3). Returns (..., h, w, 3) uint8.
    """
    alpha = rgba[..., 3:].astype(np.float32) / 255
    rgb = alpha * rgba[..., :3] + (1 - alpha) * np.asarray(background, np.float32)
    return np.rint(rgb).astype(np.uint8)


def halve_concepts(rows: list[dict], leaders: list[int]) -> dict[int, str]:
    """Return a half, A or B, by leading twin: of each concept as many drawings in one as in other.

    By chance alone one half has a single penguin, and a classifier of it cannot tell another.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for i in sorted(set(leaders), key=lambda i: uniform("class half " + rows[i]["id"])):
        concept = rows[i]["vocabulary"] or rows[i]["hexcode"]
        found.setdefault((concept, rows[i]["split"]), []).append(i)
    return {
        i: "AB"[(k + (uniform("first half " + concept) < 0.5)) % 2]
        for (concept, _), drawings in found.items()
        for k, i in enumerate(drawings)
    }


def build(out: Path) -> list[dict]:
    """Write drawings.bin and drawings.jsonl into `out`; return the rows."""
    contents = fetch(out / "packages")
    concepts = describe(contents)
    index = name_index(contents)
    order = {code: i for i, code in enumerate(concepts)}
    rows, sources = [], []
    for style in STYLES:
        found = {}
        for code, variant, source in list_icons(style, contents, index):
            toned = concepts.get(code, {}).get("weight") == 0.7 and variant > 1
            if code in concepts and not toned:  # second drawings of people are skin tones
                found.setdefault((code, variant), source)
        for (code, variant), source in sorted(
            found.items(), key=lambda item: (order[item[0][0]], item[0][1])
        ):
            suffix = f".{variant}" if variant > 1 else ""
            row = {"id": f"{style}/{code}{suffix}", "style": style, "hexcode": code}
            rows.append(row | concepts[code])
            sources.append(source)
    with Pool() as pool:
        rgba = np.stack(pool.map(rasterise, sources, chunksize=64))
        found = Counter(row["style"] for row in rows)
        visible = [i for i, drawing in enumerate(rgba) if (drawing[..., 3] > 128).mean() > 0.01]
        rows, rgba = [rows[i] for i in visible], rgba[visible]
        small = thumbnails(rgba)
        kept = drop_duplicates(rows, small)
        rows, rgba, small = [rows[i] for i in kept], rgba[kept], small[kept]
        blobs = pool.map(encode, rgba, chunksize=64)
    offset = 0
    leaders = twin_leaders(rows, small)
    for row, blob, leader in zip(rows, blobs, leaders, strict=True):
        name = rows[leader]["id"]
        row["offset"], row["length"] = offset, len(blob)
        row["split"] = "unseen" if uniform(name) < 0.05 else "train"
        row["half"] = "A" if uniform("half " + name) < 0.5 else "B"
        offset += len(blob)
    halves = halve_concepts(rows, leaders)
    for row, leader in zip(rows, leaders, strict=True):
        row["class_half"] = halves[leader]
    check(rows)
    (out / "drawings.bin").write_bytes(b"".join(blobs))
    (out / "drawings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} drawings, {offset / 1e6:.1f} MB")
    for style, n in Counter(row["style"] for row in rows).items():
        print(f"  {style:9} {n:5} of {found[style]}")
    for field in ("split", "half", "class_half", "group", "vocabulary"):
        print(field, dict(Counter(row[field] for row in rows)))
    return rows


def main() -> None:
    """Build the data set into the folder of `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/emoji"))
    build(parser.parse_args().out)


if __name__ == "__main__":
    main()
