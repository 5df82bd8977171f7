"""[cache]: latents and text embeddings on disk."""

from pydantic import Field

from pipeline.recipe.section import Positive, Section


class Cache(Section):
    """Latents and text embeddings on disk."""

    batch_size: int = Field(4, ge=1)
    """Pictures encoded together."""
    shard_megabytes: Positive = 256.0
    """The size at which a shard is closed, MB."""
