"""What x_T starts from: noise, a picture that is inverted, or a pair that a run saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from doodl_cli.commands.saved import read_run
from doodl_cli.commands.task import find_grid, read_pair
from doodl_cli.config import Config, ImageInit, LatentsInit
from doodl_cli.errors import UserError
from doodl_cli.gradient import largest_difference
from doodl_cli.models.latent_model import LatentModel
from doodl_cli.models.locate import hash_file
from doodl_cli.optimize import Problem, initial_noise
from doodl_cli.optimize.assess import finish, to_8_bit
from doodl_cli.pictures import fit_picture, read_picture
from doodl_cli.requests import Request
from doodl_cli.sampling import invert, pair_at_x_0, solve
from doodl_cli.sampling.solve import Pair


@dataclass(frozen=True)
class Inversion:
    """A picture (3, h, w) in [-1, 1] and its pairs at x_0 and at x_T, b samples of each."""

    picture: Tensor
    x_0: Pair
    x_T: Pair


@dataclass(frozen=True)
class Reconstruction:
    """8-bit pictures: the original and what the auto-encoder alone makes of it (3, h, w), and what
    the inverted x_T renders (b, 3, h, w). `error`: the largest difference of the pair at x_0.
    """

    original: Tensor
    autoencoded: Tensor
    rendered: Tensor
    error: float


def find_start(
    config: Config, model: LatentModel, problem: Problem, requests: Sequence[Request]
) -> Pair:
    """Return the pair at x_T, two tensors (b, c, h, w), of the samples of a batch."""
    init = config.init
    if isinstance(init, ImageInit):
        picture = read_picture(str(init.path), "init.path")
        return invert_picture(picture, config, model, problem).x_T
    if isinstance(init, LatentsInit):
        return read_saved(init, model, [request.number for request in requests])
    x_T = initial_noise(problem.seeds, model.latent_shape)
    return x_T, x_T.clone()


def describe_start(config: Config) -> dict[str, Any]:
    """Return what metadata.json says about the start."""
    init = config.init
    facts: dict[str, Any] = {"name": init.name}
    if isinstance(init, ImageInit):
        return facts | describe_file(str(init.path))
    if isinstance(init, LatentsInit):
        return facts | {"path": init.path, "which": init.which}
    return facts


def describe_file(path: str) -> dict[str, str]:
    file = Path(path).expanduser()
    return {"path": str(file.absolute()), "sha256": hash_file(file)}


def invert_picture(
    picture: Image.Image, config: Config, model: LatentModel, problem: Problem
) -> Inversion:
    """Encode a picture and carry it back through the sampler, the same for every sample."""
    fitted = fit_picture(picture, model.picture_size)
    x_0 = model.encode(fitted[None]).expand(len(problem.seeds), -1, -1, -1)
    grid = find_grid(config, model)

    def invert_part(k: slice, part: Problem) -> tuple[Tensor, ...]:
        pair = pair_at_x_0(part.table, grid, part.net, x_0[k])
        return *pair, *invert(part.table, part.net, pair)

    pairs = problem.compute(invert_part)  # as it will be rendered, so that the rounding is the same
    u_0, v_0, u_T, v_T = (torch.cat(latents) for latents in zip(*pairs, strict=True))
    return Inversion(fitted, (u_0, v_0), (u_T, v_T))


@torch.no_grad()
def reconstruct(inversion: Inversion, problem: Problem) -> Reconstruction:
    """Render an inverted picture again, beside what encoding and decoding it does."""
    x_0 = solve(problem.table, problem.net, inversion.x_T)
    return Reconstruction(
        original=to_8_bit(inversion.picture),
        autoencoded=finish(problem, inversion.x_0)[0].cpu(),
        rendered=finish(problem, x_0).cpu(),
        error=largest_difference(x_0, inversion.x_0).max().item(),
    )


def read_saved(init: LatentsInit, model: LatentModel, numbers: Sequence[int]) -> Pair:
    """Return the pair of a saved run: its samples with these numbers, or its only one for all.

    Raises UserError.
    """
    *_, latents = read_run(str(init.path), "init.path")
    files = latents if len(latents) == 1 else [latents[number] for number in numbers]
    u, v = read_pair(files, f"x_T_{init.which}", "init.path")
    if u.shape[1:] != model.latent_shape:
        raise UserError(
            f"init.path={init.path}: holds latents {tuple(u.shape[1:])}; "
            f"must be {model.latent_shape}, as of model={model.name}"
        )
    if len(u) < len(numbers):
        u, v = (x.expand(len(numbers), -1, -1, -1) for x in (u, v))
    return u, v
