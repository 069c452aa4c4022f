"""Losses on the finished picture: what it is scored by, and how several losses combine."""

from doodl_cli.guidance.build import build_evaluation, build_guidance
from doodl_cli.guidance.clip import spherical_distance
from doodl_cli.guidance.combine import Terms, combine, join_terms
from doodl_cli.guidance.guidance import Guidance, Prompt, Score

__all__ = [
    "Guidance",
    "Prompt",
    "Score",
    "Terms",
    "build_evaluation",
    "build_guidance",
    "combine",
    "join_terms",
    "spherical_distance",
]
