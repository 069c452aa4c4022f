"""DOODL: exact guidance of diffusion models by optimising the starting noise x_T."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from doodl_cli.api import optimize_pipeline as optimize_pipeline
    from doodl_cli.guidance import Guidance as Guidance
    from doodl_cli.guidance.scores import colourfulness as colourfulness
    from doodl_cli.guidance.scores import symmetry as symmetry
    from doodl_cli.models.pipeline import adapt_pipeline as adapt_pipeline
    from doodl_cli.optimize import Record as Record
    from doodl_cli.optimize import Settings as Settings
    from doodl_cli.run_directory import to_image as to_image

__version__ = "0.1.0"

# Imported when they are asked for: torch alone takes longer than `doodl --help` may.
PUBLIC = {
    "Guidance": "doodl_cli.guidance",
    "Record": "doodl_cli.optimize",
    "Settings": "doodl_cli.optimize",
    "adapt_pipeline": "doodl_cli.models.pipeline",
    "colourfulness": "doodl_cli.guidance.scores",
    "optimize_pipeline": "doodl_cli.api",
    "symmetry": "doodl_cli.guidance.scores",
    "to_image": "doodl_cli.run_directory",
}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
