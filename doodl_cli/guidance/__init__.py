"""Losses on the finished picture: what it is scored by, and how several losses combine."""

from doodl_cli.guidance.build import build_evaluation, build_guidance
from doodl_cli.guidance.clip import spherical_distance
from doodl_cli.guidance.combine import Terms, combine
from doodl_cli.guidance.guidance import Guidance, Prompt, Score

__all__ = [
    "Guidance",
    "Prompt",
    "Score",
    "Terms",
    "build_evaluation",
    "build_guidance",
    "combine",
    "spherical_distance",
]
