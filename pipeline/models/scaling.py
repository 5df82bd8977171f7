"""The factor between a VAE's latents and what the UNet expects."""

from pipeline.models.configurations import fetched_configurations
from pipeline.models.layout import read_configuration
from pipeline.recipe.base import Base

STABLE_DIFFUSION = 0.18215
"""SD 1.5's, Rombach et al. 2022, arXiv 2112.10752: it gives the latents unit variance."""


def latent_scaling(base: Base) -> float:
    """What latents are multiplied by before noise is added. Raises as `load_vae` does."""
    configuration = read_configuration(fetched_configurations(base) / "vae" / "config.json")
    return float(configuration.get("scaling_factor", STABLE_DIFFUSION))
