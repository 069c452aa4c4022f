"""Put trainings of one CLIP that began at the same weights together: the mean of their weights.

What one of them has learnt by chance weighs less (Wortsman et al. 2022, "Model soups").

    python scripts/embedded/average_clips.py build/c1 build/c2 --out doodl_cli/assets/emoji/clip_c
"""

import argparse
import json
from pathlib import Path

import torch
from pictures import ASSETS
from safetensors.torch import load_file
from train_clip import CONFIG, WEIGHTS, save_clip


def average(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the mean of state dicts; what is no floating-point number is the first one's."""
    return {
        name: torch.stack([state[name].float() for state in states]).mean(0)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def main() -> None:
    """Read the folders and write one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, nargs="+", help="folders of train_clip.py")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = json.loads((args.clips[0] / CONFIG).read_text())["model_cfg"]
    state = average([load_file(folder / WEIGHTS) for folder in args.clips])
    save_clip(args.out, state, config, ASSETS / "tokenizer")


if __name__ == "__main__":
    main()
