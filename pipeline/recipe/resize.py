"""[resize]: the aspect-ratio bucket ladder."""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.recipe.section import Section


class Resize(Section):
    """The aspect-ratio bucket ladder."""

    resolution: int = Field(768, ge=16, le=4096)
    """Area side: every bucket holds at most resolution x resolution pixels."""
    step: int = Field(64, ge=8, le=256, multiple_of=8)
    """Bucket sides are multiples of so many pixels."""
    min_side: int = Field(320, ge=8)
    """Shortest bucket side, pixels."""
    max_side: int = Field(1536, ge=8)
    """Longest bucket side, pixels."""
    format: Literal["webp", "png"] = "webp"
    """How resized pictures are stored; both are lossless."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.min_side <= self.resolution <= self.max_side:
            raise ValueError(
                "needs min_side <= resolution <= max_side, "
                f"and has {self.min_side}, {self.resolution}, {self.max_side}"
            )
        return self
