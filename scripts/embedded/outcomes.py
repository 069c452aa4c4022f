"""Optimise many prompts and seeds at once, as the measuring scripts of this folder need it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from doodl_cli.commands import task
from doodl_cli.commands.application import composer, resolve
from doodl_cli.config import Config, read_config
from doodl_cli.figures import draw_grid
from doodl_cli.guidance import build_evaluation, build_guidance
from doodl_cli.models.latent_model import LatentModel
from doodl_cli.optimize import initial_noise
from doodl_cli.optimize.assess import from_8_bit
from doodl_cli.requests import Request


@dataclass(frozen=True)
class Outcome:
    """Held-out scores and 8-bit pictures at the start and at the best iterate, b samples."""

    first: dict[str, Tensor]
    best: dict[str, Tensor]
    images_first: Tensor
    images_best: Tensor
    seconds: float


def read_settings(lines: Sequence[str], device: str) -> list[Config]:
    """Return the configurations that lines of `doodl run` overrides make."""
    with composer(None) as compose:
        return [
            read_config({**resolve(compose("run", line.split())), "device": device})
            for line in lines
        ]


def optimise(config: Config, model: LatentModel, texts: list[str], seeds: list[int]) -> Outcome:
    """Optimise one sample a text and seed."""
    requests = [
        Request(k, f"{k:03}", text, config.negative_prompt, seed)
        for k, (text, seed) in enumerate(zip(texts, seeds, strict=True))
    ]
    guidance = build_guidance(config.guidance, model)
    evaluation = build_evaluation(config.evaluate, config.guidance, model)
    problem = task.make_problem(config, model, requests, guidance, evaluation)
    x_T = initial_noise(seeds, model.latent_shape)
    began = time.time()
    for record in task.build_method(config, model)(problem, (x_T, x_T.clone()), None):
        improved = torch.tensor(record.best)
        now = {name: torch.tensor(values) for name, values in record.evaluate.items()}
        if record.iteration == 0:
            images, images_best = record.images, record.images.clone()
            first, best = now, {name: values.clone() for name, values in now.items()}
        images_best[improved] = record.images[improved]
        for name, values in now.items():
            best[name][improved] = values[improved]
    return Outcome(first, best, images, images_best, time.time() - began)


def to_float(images: Tensor, model: LatentModel) -> Tensor:
    """Return 8-bit pictures in [-1, 1] on the model's device."""
    return from_8_bit(images.to(model.device))


def in_standard_errors(gain: Tensor) -> tuple[float, float]:
    """Return the mean of paired gains (b,), and that in standard errors."""
    mean = gain.mean().item()
    return mean, mean / (gain.std().item() / len(gain) ** 0.5)


def draw_pairs(outcome: Outcome, captions: Sequence[tuple[str, str]]) -> Image.Image:
    """Draw every pair, before and after, three pairs a row, with a caption each."""
    tiles = []
    pairs = zip(outcome.images_first, outcome.images_best, captions, strict=True)
    for first, best, lines in pairs:
        for image, line in zip((first, best), lines, strict=True):
            tiles.append((Image.fromarray(image.permute(1, 2, 0).numpy()), [line]))
    return draw_grid([tiles[k : k + 6] for k in range(0, len(tiles), 6)])
