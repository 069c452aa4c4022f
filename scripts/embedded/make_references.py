"""Write the reference pictures of the image-conditioned measurement: sets/references.

One drawing of each of 20 retrieval concepts, drawn with a fixed seed, over a coloured background:

    python scripts/embedded/make_references.py --data build/emoji
"""

import argparse
from pathlib import Path
from random import Random

import numpy as np
from captions import BACKGROUNDS
from data import load
from pictures import CLOSE, SETS, read_set
from PIL import Image

SEED, N = 21, 20


def main() -> None:
    """Write the pictures, and references.txt with each one's caption."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("build/emoji"))
    rgba, rows = load(parser.parse_args().data)
    rng, folder = Random(SEED), SETS / "references"
    folder.mkdir(exist_ok=True)
    lines = []
    for k, line in enumerate(read_set("retrieval_concepts.txt")[:N]):
        caption, code = line.split("\t")
        index = rng.choice([i for i, row in enumerate(rows) if row["hexcode"] == code])
        colour, alpha = rgba[index, ..., :3].astype(float), rgba[index, ..., 3:] / 255
        mean = (colour * alpha).sum((0, 1)) / alpha.sum()
        far = [c for c in BACKGROUNDS.values() if np.linalg.norm(mean - c) > CLOSE]
        picture = colour * alpha + np.array(rng.choice(far)) * (1 - alpha)
        name = f"{k:02}.png"
        Image.fromarray(picture.round().astype(np.uint8)).save(folder / name, optimize=True)
        lines.append(f"{name}\t{caption}\t{rows[index]['id']}")
    (SETS / "references.txt").write_text("".join(line + "\n" for line in lines))


if __name__ == "__main__":
    main()
