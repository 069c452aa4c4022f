"""A loss of the user's own: a Python function of pictures and prompts.

It is tried on a dummy picture before anything is written, so that a wrong shape or a lost gradient
is said at once.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor

from doodl_cli.config import Custom
from doodl_cli.errors import UserError
from doodl_cli.guidance.guidance import Guidance

if TYPE_CHECKING:
    from doodl_cli.models.latent_model import LatentModel

ALLOWED = "must be package.module.function: (images, prompts) to one loss a sample"


def build_custom(settings: Custom, model: "LatentModel") -> Guidance:
    function = import_function(settings.target)
    guidance = Guidance(
        score=lambda images, prompts: -function(images, prompts),
        weight=settings.weight,
        n_crops=settings.n_crops,
        facts={"target": settings.target},
    )
    what = f"guidance.custom.target={settings.target}"
    check_loss(function, (2, 3, *model.picture_size), model.device, what)
    return guidance


def import_function(target: str) -> Callable[..., Any]:
    """Return package.module.function, the working directory looked at too. Raises UserError."""
    what = f"guidance.custom.target={target}"
    module_name, _, name = target.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in target.split(".")):
        raise UserError(f"{what}: {ALLOWED}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is written yet
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise UserError(
            f"{what}: cannot import {module_name}: {describe(error)}; {ALLOWED}"
        ) from error
    finally:
        sys.dont_write_bytecode = before
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{what}: {name} is not in {module_name}; {ALLOWED}{hint}")
    function = getattr(module, name)
    if not callable(function):
        raise UserError(f"{what}: {name} is {type(function).__name__}; {ALLOWED}")
    return function


def check_loss(
    function: Callable[..., Any], shape: tuple[int, ...], device: torch.device, what: str
) -> None:
    """Check on noise (b, 3, h, w) that a function returns one loss a sample, with a gradient.

    Raises UserError.
    """
    noise = torch.rand(shape, generator=Generator().manual_seed(0)) * 2 - 1
    images = noise.to(device).requires_grad_()
    try:
        loss = function(images, ["a picture"] * len(images))
    except Exception as error:  # whatever the user's function raises
        reason = f"raised {describe(error)} on pictures {shape}"
        raise UserError(f"{what}: {reason}; {ALLOWED}") from error
    expected = f"must return one loss a sample, ({len(images)},) for pictures {shape}"
    if not isinstance(loss, Tensor):
        raise UserError(f"{what}: returned {type(loss).__name__}; {expected}")
    if loss.shape != (len(images),) or not loss.is_floating_point():
        kind = str(loss.dtype).removeprefix("torch.")
        raise UserError(f"{what}: returned {tuple(loss.shape)} of {kind}; {expected}")
    gradient = None
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss.sum(), images, allow_unused=True)
    if gradient is None:
        raise UserError(
            f"{what}: its loss does not depend on the pictures differentiably; must be made of "
            "torch operations, without detach, item or numpy"
        )


def describe(error: BaseException) -> str:
    """Return an exception's class and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
