"""Pictures that the embedded model itself makes of captions, to train a scorer on what it will see.

A scorer that knows only drawings of its half takes a picture for better the more it looks like one
of them. The model's pictures of a caption vary in what the caption leaves open, and teach the rest.
"""

from random import Random

import numpy as np
import torch
from captions import count_caption, is_countable, pair_caption
from pictures import ABOVE, BESIDE, FOUR, SINGLE, THREE, Examples, draw_examples

from doodl_cli.bench.checks import BACKGROUNDS
from doodl_cli.models.latent_model import LatentModel
from doodl_cli.sampling import SAMPLERS, make_grid, solve

N_STEPS = 8
CFG_SCALE = 1.5
N_TOGETHER = 1000
WORDS = {colour: word for word, colour in BACKGROUNDS.items()}


@torch.no_grad()
def paint(model: LatentModel, captions: list[str]) -> torch.Tensor:
    """Return opaque pictures (n, 4, 64, 64) uint8 of captions, on the model's device."""
    table = SAMPLERS["bdia"](make_grid(model.schedule, N_STEPS))
    pictures = []
    for k in range(0, len(captions), N_TOGETHER):
        texts = captions[k : k + N_TOGETHER]
        net = model.net(texts, [""] * len(texts), CFG_SCALE)
        x_T = torch.randn(len(texts), *model.latent_shape, device=model.device)
        x_0 = solve(table, net, (x_T, x_T))[table.x_0_slots[0]]
        pictures.append(((model.decode(x_0) + 1) * 127.5).round().clamp(0, 255).byte())
    rgb = torch.cat(pictures)
    return torch.cat([rgb, torch.full_like(rgb[:, :1], 255)], 1)


def draw_generated(
    model: LatentModel, rows: list[dict], means: np.ndarray, indices: list[int], n: int, seed: int
) -> tuple[torch.Tensor, list[dict], Examples]:
    """Paint captions of drawings, and compose half as many examples of two to four of them.

    Returns the pictures as drawings (n, 4, 64, 64), their rows, and the examples, whose items are
    places in both.
    """
    named = [i for i in indices if rows[i]["vocabulary"] is None]
    singles = draw_examples(rows, means, named, n, seed, several=0.0)
    pictures = paint(model, singles.captions)
    own = [rows[i] for i in singles.items[:, 0]]
    items = np.full((n, 4), -1, np.int64)
    items[:, 0] = np.arange(n)
    border = torch.cat([pictures[:, :3, 0], pictures[:, :3, -1]], 2).float().median(2).values
    backgrounds = border.cpu().numpy().astype(np.uint8)
    whole = Examples(
        items, np.full(n, SINGLE), backgrounds, singles.said, singles.neutral, singles.captions
    )
    return pictures, own, join(whole, compose(own, singles, n // 2, Random(seed)))


def compose(rows: list[dict], singles: Examples, n: int, rng: Random) -> Examples:
    """Return examples of two to four pictures over one background that their captions say."""
    by_colour: dict[tuple[int, ...], list[int]] = {}
    for k, row in enumerate(rows):
        if singles.said[k] and is_countable(row) and row["name"] in singles.captions[k]:
            by_colour.setdefault(tuple(singles.backgrounds[k].tolist()), []).append(k)
    choices = [(colour, found) for colour, found in by_colour.items() if len(found) > 1]
    weights = [len(found) for _, found in choices]
    items, layouts = np.full((n, 4), -1, np.int64), np.zeros(n, np.int64)
    backgrounds, captions = np.zeros((n, 3), np.uint8), []
    for i in range(n):
        ((colour, found),) = rng.choices(choices, weights)
        word = WORDS[colour]
        if rng.random() < 1 / 3:
            k, count = rng.choice(found), rng.choice((2, 3, 4))
            layouts[i] = rng.choice((BESIDE, ABOVE)) if count == 2 else (THREE, FOUR)[count - 3]
            items[i, :count] = k
            text = count_caption(rows[k], count, rng, word)
        else:
            pair = rng.sample(found, 2)
            relation = rng.choice(("beside", "above", "below"))
            text = pair_caption(rows[pair[0]], rows[pair[1]], relation, rng, word)
            layouts[i] = BESIDE if relation == "beside" else ABOVE
            if relation == "below" or (relation == "beside" and rng.random() < 0.5):
                pair.reverse()
            items[i, :2] = pair
        backgrounds[i] = colour
        captions.append(text)
    no = np.zeros(n, bool)
    return Examples(items, layouts, backgrounds, ~no, no, captions)


def join(*parts: Examples, first_items: tuple[int, ...] = ()) -> Examples:
    """Put examples together; `first_items` are added to the places of each part's items."""
    shifts = first_items or (0,) * len(parts)
    items = [np.where(p.items < 0, -1, p.items + s) for p, s in zip(parts, shifts, strict=True)]
    arrays = [
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("layouts", "backgrounds", "said", "neutral")
    ]
    texts = [text for part in parts for text in part.captions]
    return Examples(np.concatenate(items), *arrays, texts)
