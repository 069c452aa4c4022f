"""Random numbers that belong to a sample: they depend on its seed, not on its batch."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def initial_noise(seeds: Sequence[int], latent_shape: tuple[int, int, int]) -> Tensor:
    """Return x_T ~ N(0, 1), (b, c, h, w) in float64 on the CPU, one seed a sample."""
    return draw_noise(make_generators(seeds, "x_T"), latent_shape)


def draw_noise(generators: Sequence[Generator], shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers (b, *shape), float64, each sample's from its generator."""
    return torch.stack([torch.randn(shape, generator=g, dtype=torch.float64) for g in generators])


def make_generators(seeds: Sequence[int], purpose: str) -> list[Generator]:
    """Return one generator a sample, for one purpose: streams of one seed do not overlap."""
    digests = [hashlib.sha256(f"{purpose}/{seed}".encode()).digest() for seed in seeds]
    return [Generator().manual_seed(int.from_bytes(d[:8], "little") >> 1) for d in digests]
