"""Draw the README's strip: the main job on four prompts, before and after.

python scripts/draw_readme_strip.py
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from doodl_cli.figures import draw_grid

PROMPTS = ("a red apple", "a cat", "a rocket", "a butterfly")
STRIP = Path(__file__).parents[1] / "docs" / "before-after.webp"


def run(prompt: str, folder: Path) -> list[tuple[Image.Image, list[str]]]:
    """Run the main job; return the pictures before and after with their captions."""
    words = ["run", "guidance=aesthetic", f"prompt={prompt}", f"output_dir={folder}"]
    subprocess.run([sys.executable, "-m", "doodl_cli", *words], check=True)
    (sample,) = json.loads((folder / "metadata.json").read_text())["samples"]
    tiles = []
    for which, word in (("initial", "before"), ("best", "after")):
        image = Image.open(folder / "samples/000" / f"{which}.png").convert("RGB")
        colourfulness = sample["evaluate"][which]["colourfulness"]
        lines = [f"{prompt}, {word}", f"colourfulness {colourfulness:.0f}"]
        tiles.append((image, lines))
    return tiles


def main() -> None:
    """Run, draw and save."""
    with tempfile.TemporaryDirectory() as folder:
        tiles = [run(prompt, Path(folder, str(i))) for i, prompt in enumerate(PROMPTS)]
    before, after = zip(*tiles, strict=True)
    STRIP.parent.mkdir(exist_ok=True)
    draw_grid([before, after]).save(STRIP, quality=85, method=6)


if __name__ == "__main__":
    main()
