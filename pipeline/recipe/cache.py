"""[cache]: latents and text embeddings on disk."""

from typing import Literal

from pydantic import Field

from pipeline.recipe.section import Positive, RecipePath, Section


class Cache(Section):
    """Latents and text embeddings on disk."""

    vae: RecipePath | None = None
    """Another VAE than the base's to make latents with: a .safetensors file, a diffusers folder of
    a VAE, or a whole base of either kind."""
    arithmetic: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the VAE computes in. float16 is refused for an SDXL VAE that overflows in it."""
    mirror: bool = False
    """Whether a mirrored picture is cached beside each one."""
    recolour: int = Field(0, ge=0, le=16)
    """So many copies of each picture with brightness, contrast and saturation moved a little."""
    masks: Literal["alpha", "files"] | None = None
    """What of each picture counts is cached beside its latents, for [train].masked_loss. alpha: its
    opacity; latents are then made from the originals. files: what its mask shows, a file that the
    dataset recipe's [masks] names. A picture without transparency, or without a mask, counts whole.
    """
    batch_size: int = Field(4, ge=1)
    """Pictures encoded together."""
    compile: bool = False
    """Whether torch.compile is put before the VAE: minutes once, for speed on thousands."""
    shard_megabytes: Positive = 256.0
    """The size at which a shard is closed, MB."""
    keep: int | None = Field(None, ge=1)
    """So many generations of latents and of texts stay on disk, the one in use included; older
    ones are removed when another is finished, and that is said. All stay by default."""
