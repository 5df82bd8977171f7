"""[lora]: one round's adapter."""

from pydantic import Field

from pipeline.recipe.section import Positive, Section


class Lora(Section):
    """One round's adapter."""

    rank: int = Field(16, ge=1, le=1024)
    alpha: Positive | None = None
    """The delta is alpha / rank x up x down. Default: equal to the rank."""
    conv_rank: int = Field(0, ge=0, le=1024)
    """Rank of 3x3 convolutions (C3Lier / LoCon); the resnets' time projections and shortcuts then
    get `rank`. 0 trains the attention transformers alone."""
    conv_alpha: Positive | None = None
    """Default: conv_rank x alpha / rank, the same scale as the linear layers."""

    @property
    def linear_alpha(self) -> float:
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def convolution_alpha(self) -> float:
        if self.conv_alpha is not None:
            return self.conv_alpha
        return self.conv_rank * self.linear_alpha / self.rank
