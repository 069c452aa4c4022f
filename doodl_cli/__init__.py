"""DOODL: exact guidance of diffusion models by optimising the starting noise x_T."""

__version__ = "0.1.0"
