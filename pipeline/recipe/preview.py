"""[preview]: the grids."""

from pydantic import Field

from pipeline.recipe.section import Section


class Preview(Section):
    """The grids: the same prompts and the same noise for the origin and every round."""

    prompts: tuple[str, ...] = Field(("1girl, solo, masterpiece, best quality",), min_length=1)
    negative: str = ""
    seed: int = Field(0, ge=0)
    seeds: int = Field(1, ge=1, le=16)
    """Pictures a prompt, each from a noise of its own: one picture may be luck."""
    steps: int = Field(24, ge=1, le=200)
    guidance: float = Field(6.0, ge=1, le=30)
    width: int | None = Field(None, ge=8, multiple_of=8)
    """Pixels; default: the resolution of [resize]."""
    height: int | None = Field(None, ge=8, multiple_of=8)
    enlarge: int = Field(1, ge=1, le=16)
    """Shown so many times larger, for models that draw small."""
