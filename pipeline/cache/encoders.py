"""Which model encodes a shard: a description that can be sent anywhere, loaded once a process."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.artefacts.executor import Advance
from pipeline.cache.plan import Shard
from pipeline.recipe.base import Base

if TYPE_CHECKING:
    from pipeline.cache.encoded import Encoded

Encode = Callable[[Shard[Any], Advance], "Encoded"]


@dataclass(frozen=True)
class LatentModel:
    """The VAE and how it is used."""

    base: Base
    vae: Path | None
    pictures: Path
    """The folder of the resized pictures, or of the dataset where none are kept."""
    kept: bool
    masks: Literal["alpha", "files"] | None
    batch_size: int
    arithmetic: Literal["float32", "bfloat16", "float16"]
    compiled: bool

    def load(self) -> Encode:
        """Raises RequestError where the weights are wrong."""
        import torch
        from accelerate import PartialState

        from pipeline.cache.latents import LatentEncoder
        from pipeline.cache.pictures import Pictures
        from pipeline.models.load import load_vae
        from pipeline.pictures.read import vips_engine

        engine = None if self.kept else vips_engine()
        if engine is not None:
            engine.prepare()
        # Not Accelerator(): it would fix the mixed precision of this whole process, which training
        # chooses later.
        return LatentEncoder(
            load_vae(self.base, override=self.vae),
            Pictures(self.pictures, self.kept, self.masks),
            self.batch_size,
            PartialState().device,
            getattr(torch, self.arithmetic),
            compiled=self.compiled,
        )


@dataclass(frozen=True)
class TextModel:
    """The text encoders of a base."""

    base: Base

    def load(self) -> Encode:
        """Raises RequestError where the weights are wrong."""
        from accelerate import PartialState

        from pipeline.cache.texts import TextEncoder
        from pipeline.models.load import load_text

        return TextEncoder(load_text(self.base).to(PartialState().device))


Model = LatentModel | TextModel


@lru_cache(maxsize=1)
def encoder(model: Model) -> Encode:
    """The loaded model, in place of the one before; `encoder.cache_clear()` lets go of it."""
    return model.load()
