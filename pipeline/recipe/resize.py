"""[resize]: the aspect-ratio bucket ladder."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.recipe.section import Section

Side = Annotated[int, Field(ge=16, le=4096)]
Crop = Literal["center", "top", "random"]
Format = Literal["webp", "png", "jpeg"]


class Resize(Section):
    """The aspect-ratio bucket ladder."""

    resolution: Side = 768
    """Area side: every bucket holds at most resolution x resolution pixels."""
    more_resolutions: tuple[Side, ...] = ()
    """Further area sides: every picture is also made, and trained on, at each of these."""
    step: int = Field(64, ge=8, le=256, multiple_of=8)
    """Bucket sides are multiples of so many pixels."""
    min_side: int = Field(320, ge=8)
    """Shortest bucket side, pixels."""
    max_side: int = Field(1536, ge=8)
    """Longest bucket side, pixels."""
    upscale: bool = True
    """Whether pictures smaller than their bucket are enlarged. If not, such a picture gets the
    largest bucket that lies inside it at its own scale, and fails where that has a side under
    min_side."""
    crop: Crop = "center"
    """What is kept of a picture that is not of its bucket's shape: the middle, the upper end of
    tall pictures (where heads are), or a part drawn from the picture's md5."""
    format: Format = "webp"
    """How resized pictures are stored: webp and png without loss, jpeg at quality 95."""
    keep: bool = True
    """Whether resized pictures are stored. If not, `urushi resize` only finds the place of each in
    its bucket, and `urushi cache` decodes and scales the originals: the latents are those of
    pictures stored without loss. Saves about a byte a pixel on disk; each further cache (another
    VAE, say), and each resolution, mirroring and recolouring, decodes the originals again."""

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Every area side, the main one first."""
        return (self.resolution, *self.more_resolutions)

    def as_seen(self) -> "Resize":
        """This ladder as the VAE sees its pictures: how they are stored is the same to it, but for
        a format that loses something, and so is whether they are."""
        lossy = self.keep and self.format == "jpeg"
        return self.model_copy(update={"keep": True, "format": "jpeg" if lossy else "webp"})

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for resolution in self.resolutions:
            if not self.min_side <= resolution <= self.max_side:
                raise ValueError(
                    "needs min_side <= resolution <= max_side, "
                    f"and has {self.min_side}, {resolution}, {self.max_side}"
                )
        if len(set(self.resolutions)) < len(self.resolutions):
            raise ValueError("names a resolution twice in resolution and more_resolutions")
        return self
