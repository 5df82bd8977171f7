"""[rounds] and [[round]]: the law that the rounds follow, and those appended by hand."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from pipeline.recipe.section import Positive, RecipePath, Section

Strength = Annotated[float, Field(ge=0, le=2)]
Strengths = Annotated[tuple[Strength, ...], Field(min_length=1)]
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
"""One number for each round; the last repeats."""

HELD_OUT_LEAST, HELD_OUT_MOST = 4, 512
"""Pictures: fewer say nothing, more only cost time."""


class Rounds(Section):
    """The law that the rounds follow."""

    count: int = Field(4, ge=0, le=99)
    """Rounds made by the law; [[round]] tables come after them."""
    learning_rate: Positive = 1e-4
    """Peak of round 1."""
    decay: float = Field(0.5, gt=0, le=1)
    """Each round's rate is the one before times this."""
    epochs: Counts | None = (4,)
    """Passes over the pictures, by round; the last value repeats."""
    steps: Counts | None = None
    """Steps by round instead of epochs; the last value repeats."""
    strength: Literal["auto"] | Strength | Strengths = "auto"
    """The factor on a round's delta: searched on held-out loss, one number, or a list whose last
    value repeats."""
    gate: Literal["improve", "always"] = "improve"
    """improve: a round that does not lower the held-out loss is tried once more at half the rate,
    then left out; two left out in a row stop the build. always: every round is merged."""
    held_out: float = Field(0.05, gt=0, lt=0.5)
    """Share of the pictures kept from training to choose and judge by (at least 4, at most 512)."""
    held_out_timesteps: int = Field(4, ge=1, le=64)
    """Stratified timesteps per held-out picture."""
    keep: Literal["all", "last"] = "all"
    """Which rounds' checkpoints stay on disk; any of them can be rebuilt from the LoRAs."""

    def kept_back(self, pictures: int) -> int:
        """How many of `pictures` are held out."""
        return min(HELD_OUT_MOST, max(HELD_OUT_LEAST, round(self.held_out * pictures)))


class Round(Section):
    """A round appended by hand."""

    dataset: RecipePath | None = None
    """Another dataset recipe; default: the build's."""
    learning_rate: Positive | None = None
    """Default: the law goes on."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    strength: Literal["auto"] | Strength | None = None


@dataclass(frozen=True)
class RoundLaw:
    """One round as it will run. `epochs` or `steps` is set, never both."""

    number: int
    dataset: RecipePath
    learning_rate: float
    epochs: int | None
    steps: int | None
    strength: float | None
    """None: searched on held-out loss."""
