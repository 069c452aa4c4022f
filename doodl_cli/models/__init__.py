"""Foreign models behind plain tensors: the one place that knows diffusers and its relatives."""

from doodl_cli.models.clip import Clip
from doodl_cli.models.latent_model import Calls, LatentModel, load_model

__all__ = ["Calls", "Clip", "LatentModel", "load_model"]
