"""Pictures that the embedded model itself makes of captions, to train a scorer on what it will see.

A scorer that knows only drawings of its half takes a picture for better the more it looks like one
of them. The model's pictures of a caption vary in what the caption leaves open, and teach the rest.
"""

from dataclasses import replace
from random import Random

import numpy as np
import torch
from captions import count_caption, is_countable
from pictures import Examples, arrange, draw_count, draw_examples, join

from doodl_cli.bench.checks import BACKGROUNDS
from doodl_cli.models.latent_model import LatentModel
from doodl_cli.optimize.assess import to_8_bit
from doodl_cli.sampling import SAMPLERS, make_grid, solve

N_STEPS = 8
CFG_SCALE = 1.5
N_TOGETHER = 1000
WORDS = {colour: word for word, colour in BACKGROUNDS.items()}


@torch.no_grad()
def paint(model: LatentModel, captions: list[str]) -> torch.Tensor:
    """Return 8-bit pictures (n, 3, 64, 64) of captions, on the model's device."""
    table = SAMPLERS["bdia"](make_grid(model.schedule, N_STEPS))
    pictures = []
    for k in range(0, len(captions), N_TOGETHER):
        texts = captions[k : k + N_TOGETHER]
        net = model.net(texts, [""] * len(texts), CFG_SCALE)
        x_T = torch.randn(len(texts), *model.latent_shape, device=model.device)
        x_0 = solve(table, net, (x_T, x_T))[table.x_0_slots[0]]
        pictures.append(to_8_bit(model.decode(x_0)))
    return torch.cat(pictures)


def draw_generated(
    model: LatentModel, rows: list[dict], means: np.ndarray, indices: list[int], n: int, seed: int
) -> tuple[torch.Tensor, list[dict], Examples]:
    """Paint captions of drawings, and compose half as many examples of two to four of them.

    Returns the pictures as opaque drawings (n, 4, 64, 64), their rows, and the examples, whose
    items are places in both.
    """
    named = [i for i in indices if rows[i]["vocabulary"] is None]
    singles = draw_examples(rows, means, named, n, seed, several=0.0)
    pictures = paint(model, singles.captions)
    sources = [rows[i] for i in singles.items[:, 0]]
    composed = compose(sources, singles, n // 2, Random(seed))
    items = np.full((n, 4), -1, np.int64)
    items[:, 0] = np.arange(n)
    border = torch.cat([pictures[:, :, 0], pictures[:, :, -1]], 2).median(2).values
    whole = replace(singles, items=items, backgrounds=border.cpu().numpy())
    opaque = torch.full_like(pictures[:, :1], 255)
    return torch.cat([pictures, opaque], 1), sources, join([whole, composed])


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
        ((backgrounds[i], found),) = rng.choices(choices, weights)
        word = WORDS[tuple(backgrounds[i].tolist())]
        if rng.random() < 1 / 3:
            k = rng.choice(found)
            count, layouts[i] = draw_count(rng)
            items[i, :count] = k
            text = count_caption(rows[k], count, rng, word)
        else:
            items[i, :2], layouts[i], text = arrange(rows, rng.sample(found, 2), word, rng)
        captions.append(text)
    no = np.zeros(n, bool)
    return Examples(items, layouts, backgrounds, ~no, no, captions)
