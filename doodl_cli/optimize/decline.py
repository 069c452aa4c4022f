"""Stopping early on a held-out score.

A score that is optimised and one that is not rise together, until the optimised one goes on alone:
from there on the picture fools its scorer.
"""

import math
from collections.abc import Mapping


class Decline:
    """How long each sample's score `name` has been below its highest; None: never watched."""

    def __init__(self, name: str | None, patience: int, n_samples: int) -> None:
        self.name = name
        self.patience = patience
        self.highest = [-math.inf] * n_samples
        self.since = [0] * n_samples

    def judge(self, scores: Mapping[str, list[float]], iteration: int) -> list[str | None]:
        """Return why a sample stops at this iteration, None where it goes on."""
        reasons: list[str | None] = [None] * len(self.since)
        if self.name is None:
            return reasons
        for i, score in enumerate(scores[self.name]):
            if score >= self.highest[i]:
                self.highest[i], self.since[i] = score, iteration
            elif iteration - self.since[i] >= self.patience:
                reasons[i] = (
                    f"{self.name} at iteration {iteration} has been below its highest "
                    f"({self.highest[i]:.4g} at iteration {self.since[i]}) "
                    f"for {self.patience} iterations"
                )
        return reasons
