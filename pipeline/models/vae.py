"""Which VAE makes the latents, the base's own or `[cache].vae`, and the digest of what it holds."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.artefacts.identity import Identities
from pipeline.errors import RequestError
from pipeline.models.components import VAE, Component
from pipeline.models.configurations import fetched_configurations
from pipeline.models.digest import canonical, component_digests, fingerprint_of, tensors_digest
from pipeline.models.family import family_of
from pipeline.models.header import read_header
from pipeline.models.layout import read_configuration, weights_of
from pipeline.recipe import BuildRecipe
from pipeline.recipe.base import Base

CONFIGURATION = "config.json"
PIPELINE = "model_index.json"
"""What tells the folder of a whole base from that of a VAE alone."""
SCALING = "scaling_factor"


@dataclass(frozen=True)
class VaeSource:
    """Where a VAE's weights and configuration lie."""

    weights: Path
    """A file, or the folder that holds `component`'s."""
    component: Component
    configuration: Path
    """The folder whose `component` folder has config.json."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Its weights' files."""
        if self.weights.is_dir():
            return weights_of(self.weights, self.component).files
        return (self.weights,)

    def settings(self) -> dict[str, Any]:
        """The configuration."""
        return read_configuration(self.configuration / self.component.folder / CONFIGURATION)


def vae_source(base: Base, override: Path | None) -> VaeSource:
    """The VAE of `base`, or the one in `override`.

    Raises:
        RequestError: `override` is not there, or its latents are scaled for another family.
    """
    if override is None:
        return VaeSource(base.checkpoint, VAE, fetched_configurations(base))
    if override.is_file():
        return VaeSource(override, VAE, fetched_configurations(base))
    if not override.is_dir():
        raise RequestError(f"There is no VAE {override} ([cache].vae).")
    whole = (override / PIPELINE).is_file()
    source = VaeSource(override, VAE if whole else replace(VAE, folder=""), override)
    own = source.settings().get(SCALING)
    bases = vae_source(base, None).settings().get(SCALING)
    if own != bases:
        raise RequestError(
            f"The VAE in {override} ([cache].vae) scales latents by {own}, the base's by {bases}: "
            "it belongs to another family of models. Name one that was made for this base."
        )
    return source


def vae_digest(recipe: BuildRecipe, identities: Identities) -> str:
    """BLAKE3 of the VAE that latents are made with. Raises as `vae_source` does."""
    override = recipe.cache.vae
    if override is None:
        return component_digests(recipe.base, identities).vae
    source = vae_source(recipe.base, override)
    settings = source.configuration / source.component.folder / CONFIGURATION

    def compute() -> dict[str, str]:
        held = [_weights(path, source.component) for path in source.files]
        return {"vae": fingerprint_of(*held, canonical(settings))}

    what = f"VAE of {override.resolve()} as in {settings}"
    return identities.remembered(what, [*source.files, settings], compute)["vae"]


def _weights(path: Path, component: Component) -> str:
    header = read_header(path)
    prefixed = any(name.startswith(component.prefix) for name in header.tensors)
    return tensors_digest(header, lambda n: not prefixed or n.startswith(component.prefix))


def check_arithmetic(recipe: BuildRecipe) -> None:
    """Refuses float16 where the VAE is known to overflow in it.

    SDXL's as published gives NaN; the repaired one says `force_upcast: false`. A single file says
    nothing, and is believed: what does not fit float16 fails picture by picture.
    """
    override = recipe.cache.vae
    if recipe.cache.arithmetic != "float16" or family_of(recipe.base) != "sdxl":
        return
    if override is not None and override.is_file():
        return
    if vae_source(recipe.base, override).settings().get("force_upcast", True):
        raise RequestError(
            '[cache].arithmetic is "float16", in which SDXL\'s VAE gives NaN. Use "bfloat16" or '
            '"float32", or name a VAE that was repaired for float16 in [cache].vae.'
        )
