"""Pictures and captions for training the embedded model, composed on the device.

All drawings stay on the device as one uint8 RGBA tensor. An example names up to four of them, a
layout, a background colour and a caption; examples are drawn beforehand on the CPU. Composition
resamples premultiplied alpha, so that edges keep their colour over any background.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from captions import caption, count_caption, is_countable, neutral, pair_caption
from data import load

from doodl_cli.bench.checks import BACKGROUNDS
from doodl_cli.guidance import scores

SETS = Path(__file__).parent / "sets"
ASSETS = Path(__file__).parents[2] / "doodl_cli" / "assets" / "emoji"
N_TOKENS = 32

# Layout: the (size, x, y) of each drawing, with the centre in [-1, 1] coordinates of the canvas.
SINGLE, BESIDE, ABOVE, THREE, FOUR = range(5)
PLACES = (
    ((1, 0, 0),),
    ((0.5, -0.5, 0), (0.5, 0.5, 0)),
    ((0.5, 0, -0.5), (0.5, 0, 0.5)),
    ((0.5, 0, -0.5), (0.5, -0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.5, -0.5, -0.5), (0.5, 0.5, -0.5), (0.5, -0.5, 0.5), (0.5, 0.5, 0.5)),
)
CLOSE = 70.0  # RGB distance below which a drawing would vanish in its background


@dataclass
class Examples:
    """Examples as parallel arrays: items (n, 4), -1 where empty; backgrounds (n, 3) uint8.

    `said`: the caption says the background; `neutral`: it says only the drawing's group.
    """

    items: np.ndarray
    layouts: np.ndarray
    backgrounds: np.ndarray
    said: np.ndarray
    neutral: np.ndarray
    captions: list[str]


def load_drawings(folder: Path, device: str) -> tuple[torch.Tensor, list[dict], np.ndarray]:
    """Return the drawings (n, 4, 64, 64) uint8 on the device, rows, and mean colours (n, 3)."""
    rgba, rows = load(folder)
    alpha = rgba[..., 3:].astype(np.float32)
    means = (rgba[..., :3] * alpha).sum((1, 2)) / np.maximum(alpha.sum((1, 2)), 1)
    return torch.from_numpy(rgba).permute(0, 3, 1, 2).contiguous().to(device), rows, means


def draw_background(rng: Random, means: np.ndarray) -> tuple[str | None, tuple[int, ...]]:
    """Draw a background that is not close to the drawings' mean colours: a caption word, RGB.

    Half of the backgrounds are said, one in six of them white. Of the others (None) half are
    white and half a tint of a colour, pale more often than strong: what the caption leaves open,
    the noise decides, and guidance can move it without leaving what the caption allows.
    """
    while True:
        word = "white" if rng.random() < 1 / 6 else rng.choice(list(BACKGROUNDS))
        colour, said = BACKGROUNDS[word], rng.random() < 0.5
        if not said:
            strength = rng.choice((0, rng.random() ** 2))
            colour = tuple(round(255 - strength * (255 - channel)) for channel in colour)
        white = colour == BACKGROUNDS["white"]
        if white or np.linalg.norm(means - colour, axis=1).min() > CLOSE:
            return word if said else None, colour


def draw_count(rng: Random) -> tuple[int, int]:
    """Draw how many copies of a drawing are shown, and their layout."""
    count = rng.choice((2, 3, 4))
    return count, rng.choice((BESIDE, ABOVE)) if count == 2 else (THREE, FOUR)[count - 3]


def arrange(
    rows: list[dict], pair: list[int], background: str | None, rng: Random
) -> tuple[list[int], int, str]:
    """Draw how two drawings stand to each other: in the order of places, a layout, a caption."""
    relation = rng.choice(("beside", "above", "below"))
    text = pair_caption(rows[pair[0]], rows[pair[1]], relation, rng, background)
    turned = relation == "below" or (relation == "beside" and rng.random() < 0.5)
    return pair[::-1] if turned else pair, BESIDE if relation == "beside" else ABOVE, text


def _draw_chunk(rows, means, indices, several, name_vocabulary, n, seed) -> Examples:
    rng, generator = Random(seed), np.random.default_rng(seed)
    weights = np.array([rows[i]["weight"] for i in indices])
    singles = generator.choice(indices, n, p=weights / weights.sum())
    countable = [i for i in indices if is_countable(rows[i])]
    items, layouts = np.full((n, 4), -1, np.int64), np.zeros(n, np.int64)
    backgrounds, is_neutral, captions = np.zeros((n, 3), np.uint8), np.zeros(n, bool), []
    said = np.zeros(n, bool)
    for i in range(n):
        kind = rng.random()
        if kind < several / 3:
            item = rng.choice(countable)
            count, layout = draw_count(rng)
            background, colour = draw_background(rng, means[[item]])
            text = count_caption(rows[item], count, rng, background)
            items[i, :count] = item
        elif kind < several:
            pair = [rng.choice(countable), rng.choice(countable)]
            background, colour = draw_background(rng, means[pair])
            items[i, :2], layout, text = arrange(rows, pair, background, rng)
        else:
            items[i, 0], layout, row = singles[i], SINGLE, rows[singles[i]]
            background, colour = draw_background(rng, means[singles[i : i + 1]])
            text = caption(row, rng, background, name_vocabulary)
            plain = neutral(row)
            is_neutral[i] = text == plain or text.startswith((plain + " on ", plain + ", "))
            is_neutral[i] |= text == "" or (text.endswith(" background") and text.count(" ") < 3)
        layouts[i], backgrounds[i], said[i] = layout, colour, background is not None
        captions.append(text)
    return Examples(items, layouts, backgrounds, said, is_neutral, captions)


def draw_examples(
    rows: list[dict],
    means: np.ndarray,
    indices: list[int],
    n: int,
    seed: int = 0,
    several: float = 0.2,
    name_vocabulary: bool = False,
) -> Examples:
    """Draw `n` captioned examples from the drawings of `indices`, `several` of them composed."""
    size = max(1, min(n, 4000))
    draw = partial(_draw_chunk, rows, means, np.array(indices), several, name_vocabulary)
    tasks = [(min(size, n - at), seed * 100_003 + at) for at in range(0, n, size)]
    if len(tasks) == 1:
        parts = [draw(*tasks[0])]
    else:
        with get_context("fork").Pool() as pool:
            parts = pool.starmap(draw, tasks)
    return join(parts)


def join(parts: Sequence[Examples]) -> Examples:
    """Put examples together."""
    arrays = [
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("items", "layouts", "backgrounds", "said", "neutral")
    ]
    return Examples(*arrays, [text for part in parts for text in part.captions])


class Composer:
    """Composes the pictures of examples on the device, in [0, 1]."""

    def __init__(self, drawings: torch.Tensor, examples: Examples):
        device = drawings.device
        self.drawings = drawings
        self.items = torch.from_numpy(examples.items).to(device)
        self.layouts = torch.from_numpy(examples.layouts).to(device)
        self.backgrounds = torch.from_numpy(examples.backgrounds).to(device).float() / 255
        self.places = torch.zeros(len(PLACES), 4, 3, device=device)
        for i, places in enumerate(PLACES):
            self.places[i, : len(places)] = torch.tensor(places)

    def __call__(
        self,
        at: torch.Tensor,
        augmented: float = 0.5,
        scale: tuple[float, float] = (0.8, 1.05),
        shift: float = 4.0,
        degrees: float = 0.0,
    ) -> torch.Tensor:
        """Return pictures (b, 3, 64, 64) of the examples at `at`, a share of them augmented."""
        items, places = self.items[at], self.places[self.layouts[at]]
        picture = self.backgrounds[at][:, :, None, None].expand(-1, -1, 64, 64).clone()
        for k in range(4):
            here = torch.arange(len(at), device=at.device) if k == 0 else None
            if k > 0:
                here = (items[:, k] >= 0).nonzero()[:, 0]
                if len(here) == 0:
                    break
            random = torch.rand(5, len(here), device=at.device)
            chosen = (random[0] < augmented).float()
            size, x, y = places[here, k].unbind(1)
            grow = 1 + chosen * (scale[0] + (scale[1] - scale[0]) * random[1] - 1)
            x = x + chosen * (2 * random[2] - 1) * shift / 32 * size
            y = y + chosen * (2 * random[3] - 1) * shift / 32 * size
            angle = chosen * (2 * random[4] - 1) * math.radians(degrees)
            cos, sin = torch.cos(angle) / (size * grow), torch.sin(angle) / (size * grow)
            theta = torch.stack(
                [cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], 1
            ).view(-1, 2, 3)
            drawing = self.drawings[items[here, k]].float() / 255
            alpha = drawing[:, 3:]
            drawing = torch.cat([drawing[:, :3] * alpha, alpha], 1)
            grid = F.affine_grid(theta, list(drawing.shape), align_corners=False)
            drawing = F.grid_sample(drawing, grid, align_corners=False)
            picture[here] = picture[here] * (1 - drawing[:, 3:]) + drawing[:, :3]
        return picture.clamp_(0, 1)


def plain_examples(indices: list[int]) -> Examples:
    """Return uncaptioned single drawings over white, for measurement."""
    items = np.full((len(indices), 4), -1, np.int64)
    items[:, 0] = indices
    n = len(indices)
    no, white = np.zeros(n, bool), np.full((n, 3), 255, np.uint8)
    return Examples(items, np.zeros(n, np.int64), white, no, no, [""] * n)


def compose_plain(drawings: torch.Tensor, indices: list[int]) -> torch.Tensor:
    """Return the drawings of `indices` over white, unchanged: (b, 3, 64, 64) in [0, 1]."""
    compose = Composer(drawings, plain_examples(indices))
    return compose(torch.arange(len(indices), device=drawings.device), augmented=0.0)


def soften(picture: torch.Tensor, noise: float = 0.1, blur: float = 0.3) -> torch.Tensor:
    """Blur a share of the pictures and add Gaussian noise of random strength to half of them."""
    b = len(picture)
    random = torch.rand(3, b, 1, 1, 1, device=picture.device)
    small = F.avg_pool2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, 1)
    share = (random[0] < blur).float() * random[1]
    picture = picture + share * (small - picture)
    strength = (random[2] - 0.5).clamp(min=0) * 2 * noise
    return (picture + strength * torch.randn_like(picture)).clamp(0, 1)


def erase(picture: torch.Tensor, share: float) -> torch.Tensor:
    """Fill a random rectangle of a share of the pictures with their mean colour."""
    b, _, h, w = picture.shape
    low, high = torch.rand(2, b, 2, device=picture.device).sort(0).values.clamp(0.1, 0.9)
    y = torch.linspace(0, 1, h, device=picture.device)
    x = torch.linspace(0, 1, w, device=picture.device)
    rows = (y > low[:, :1]) & (y < high[:, :1])
    columns = (x > low[:, 1:]) & (x < high[:, 1:])
    erased = (rows[:, :, None] & columns[:, None, :])[:, None]
    erased &= torch.rand(b, 1, 1, 1, device=picture.device) < share
    return torch.where(erased, picture.mean((2, 3), keepdim=True), picture)


def jitter_colours(picture: torch.Tensor, strength: float) -> torch.Tensor:
    """Scale brightness, contrast and saturation of each picture by up to 1 +- `strength`."""
    factor = 1 + strength * (2 * torch.rand(3, len(picture), 1, 1, 1, device=picture.device) - 1)
    picture = picture * factor[0]
    picture = picture.mean((1, 2, 3), keepdim=True) * (1 - factor[1]) + picture * factor[1]
    picture = picture.mean(1, keepdim=True) * (1 - factor[2]) + picture * factor[2]
    return picture.clamp(0, 1)


def colourfulness(picture: torch.Tensor) -> torch.Tensor:
    """Return the package's own colourfulness of pictures in [0, 1]: (b,)."""
    return scores.colourfulness(2 * picture - 1)


def indices_where(rows: list[dict], **wanted) -> list[int]:
    """Return the indices of the rows that have the wanted values."""
    return [i for i, row in enumerate(rows) if all(row[k] == v for k, v in wanted.items())]


def read_set(name: str) -> list[str]:
    """Return the lines of one of the fixed sets."""
    return (SETS / name).read_text().splitlines()


def unseen_indices(rows: list[dict]) -> list[int]:
    """Return the indices of the 200 unseen drawings."""
    index = {row["id"]: i for i, row in enumerate(rows)}
    return [index[name] for name in read_set("unseen.txt")]


def tokenise(tokenizer, texts: list[str]) -> torch.Tensor:
    """Return token ids (n, 32), padded with the end of text."""
    parts = [
        tokenizer(
            texts[at : at + 50_000],
            padding="max_length",
            max_length=N_TOKENS,
            truncation=True,
            return_tensors="np",
        ).input_ids.astype(np.int64)
        for at in range(0, len(texts), 50_000)
    ]
    return torch.from_numpy(np.concatenate(parts))


class Clock:
    """Measures the elapsed share of a time budget: warm-up, then cosine to zero.

    The budget counts from the program's start; the schedule from `begin`, after compilation.
    """

    def __init__(self, seconds: float, steps: int | None = None):
        self.start, self.seconds, self.steps = time.time(), seconds, steps
        self.begin_at, self.step, self.logged = None, 0, 0.0

    def share(self) -> float:
        """Return the elapsed share, in [0, 1]; count a step."""
        self.step += 1
        if self.steps is not None:
            return min(1.0, (self.step - 1) / self.steps)
        now = time.time()
        if self.begin_at is None:
            if self.step <= 3:
                return 0.0
            self.begin_at = now
        left = max(1.0, self.start + self.seconds - self.begin_at)
        return min(1.0, (now - self.begin_at) / left)

    def log_due(self, every: float = 10.0) -> bool:
        """Tell whether `every` seconds have passed since the last log."""
        if time.time() - self.logged < every:
            return False
        self.logged = time.time()
        return True


def schedule(share: float, warm_up: float = 0.03) -> float:
    """Return the learning rate's factor: linear warm-up, then cosine to zero."""
    return min(1.0, (share + 1e-3) / warm_up) * 0.5 * (1 + math.cos(math.pi * share))


def choose_device(smoke: bool = False) -> str:
    """Return "cuda" where there is one; else, or for a smoke test, "cpu" on one thread."""
    if torch.cuda.is_available() and not smoke:
        return "cuda"
    torch.set_num_threads(1)
    return "cpu"


def set_rate(optimiser, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimiser.param_groups:
        group["lr"] = rate


def descend(optimiser, loss: torch.Tensor, parameters: list) -> None:
    """Take one step down the loss, with the gradient of `parameters` clipped to norm 1."""
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()


@torch.no_grad()
def follow(averages: list, parameters: list, decay: float) -> None:
    """Move the averages towards the parameters: a <- decay a + (1 - decay) p."""
    torch._foreach_lerp_(averages, parameters, 1 - decay)


def averaged_state(model, averages: list) -> dict[str, torch.Tensor]:
    """Return the state dict of a model with averaged parameters, its buffers as they are."""
    state = dict(model.state_dict())
    for (name, _), value in zip(model.named_parameters(), averages, strict=True):
        state[name] = value
    return {name: value.detach().clone() for name, value in state.items()}


def write_json(path: Path, content: dict) -> None:
    """Write a json file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
