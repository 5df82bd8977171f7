"""[rounds] and [[round]]: the law that the rounds follow, and those appended by hand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.recipe.section import Positive, RecipePath, Section, from_recipe_folder
from pipeline.recipe.train import Train

Strength = Annotated[float, Field(ge=0, le=2)]
Strengths = Annotated[tuple[Strength, ...], Field(min_length=1)]
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
"""One number for each round; the last repeats."""
Rates = Annotated[tuple[Positive, ...], Field(min_length=1)]
Keep = Literal["all", "last", "best", "none"] | Annotated[int, Field(ge=1)]

HELD_OUT_LEAST, HELD_OUT_MOST = 4, 512
"""Pictures: fewer say nothing, more only cost time."""
DAMPED = 0.5
"""What "damped" merges every round at. With tens of pictures a search takes all of round 1 and
little of what follows; half of each, fitted together at the end, does better."""

StartPolicy = Literal["fresh", "kept", "gradient", "carried", "pissa"]


class Rounds(Section):
    """The law that the rounds follow."""

    count: int = Field(4, ge=0, le=99)
    """Rounds made by the law; [[round]] tables come after them."""
    learning_rate: Literal["auto"] | Positive | Rates = 1e-4
    """Peak of round 1; a list gives each round's, and its last value repeats. auto: the best of
    trial_rates by held-out loss after trial_steps."""
    decay: float = Field(1.0, gt=0, le=1)
    """Each round's rate is the one before times this."""
    envelope: Literal["round", "build"] = "round"
    """What a falling [train].scheduler runs over. round: each round falls from its peak to
    min_rate, the best law in our tests. build: one fall over all rounds, with a warm-up at the
    start of each, as ReLoRA's paper has it."""
    trial_rates: Rates = (3e-5, 1e-4, 3e-4)
    """Peaks to try for learning_rate = "auto"."""
    trial_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps of each trial; default: a quarter of round 1's."""
    epochs: Counts | None = (4,)
    """Passes over the pictures, by round; the last value repeats."""
    steps: Counts | None = None
    """Steps by round instead of epochs; the last value repeats."""
    start: StartPolicy = "fresh"
    """How a round's LoRA starts, its optimizer always anew. fresh: a random down and an up of 0.
    kept: the down of the round before. gradient: a down along the gradient's leading directions.
    carried: half of the last LoRA's directions are trained on, the gradient's beside them.
    pissa: the weights' own leading directions; files of twice the rank, and lower rates."""
    strength: Literal["auto", "damped"] | Strength | Strengths = "auto"
    """The factor on a round's delta: searched on held-out loss; one number; or a list whose last
    value repeats. damped: 0.5 in every round, for tens of pictures."""
    encoders_apart: bool = False
    """Whether text encoders that learn get a strength of their own where strengths are searched:
    found beside the UNet's, and refitted beside it."""
    refit: bool = True
    """Whether auto and damped strengths are fitted again, all together, after the last round;
    with them those that [[round]] tables and people's answers gave."""
    gate: Literal["improve", "always"] = "improve"
    """improve: a round that does not lower the held-out loss is tried once more at half the rate
    with another seed, then left out. always: every round is merged."""
    patience: int = Field(2, ge=0)
    """Rounds in a row that are left out, or that help by no more than noise, after which the build
    stops; 0: never. Of no effect under gate = "always"."""
    anchor: RecipePath | None = None
    """A dataset recipe of pictures whose loss must not rise much: what the model should not forget.
    They are never trained on. A round that raises it by more than a quarter is shrunk."""
    anchor_pictures: int = Field(64, ge=HELD_OUT_LEAST, le=HELD_OUT_MOST)
    """At most so many of the anchor's pictures are looked at."""
    anchor_budget: Positive | None = None
    """The most that all rounds together may add to the anchor loss, as a share of the origin's."""
    drift: Positive | None = None
    """The build stops when its deltas' norm is this share of that of the weights they change."""
    hours: Positive | None = None
    """No round is begun when those before it have taken so many hours."""
    approve: Literal["no", "each round"] = "no"
    """each round: after every round the build waits for `urushi approve BUILD`, or for the form in
    Prefect's interface."""
    approve_hours: Positive | None = None
    """How long it waits for an answer; default: for ever."""
    approve_default: Literal["continue", "stop"] = "continue"
    """What is done when nobody answered within approve_hours."""
    held_out: float = Field(0.05, gt=0, lt=0.5)
    """Share of the pictures kept from training to choose and judge by (at least 4, at most 512)."""
    held_out_timesteps: int = Field(4, ge=1, le=64)
    """Stratified timesteps per held-out picture."""
    keep: Keep = "all"
    """Which rounds' checkpoints stay on disk: all, the last, the last so many, the one of the least
    held-out loss, or none beside the final one. Any can be rebuilt from the LoRAs, which stay."""

    @model_validator(mode="after")
    def _says_one_law(self) -> Self:
        if self.decay < 1 and isinstance(self.learning_rate, tuple):
            raise ValueError(
                "has a list in learning_rate and a decay: a list gives each round's rate already"
            )
        return self

    @model_validator(mode="after")
    def _asks_for_what_it_waits(self) -> Self:
        if self.approve == "no" and self.approve_hours is not None:
            raise ValueError('has approve_hours, and approve = "no" asks nobody: set "each round"')
        return self

    @property
    def refits(self) -> bool:
        """Whether strengths are chosen for the user, and fitted again after the last round."""
        return self.refit and self.strength in ("auto", "damped")

    def kept_back(self, pictures: int) -> int:
        """How many of `pictures` are held out."""
        return min(HELD_OUT_MOST, max(HELD_OUT_LEAST, round(self.held_out * pictures)))

    def rate(self, index: int) -> float | None:
        """The peak of the law's round `index`, from 0; None where trials are to find it."""
        rates = self.learning_rate
        if rates == "auto":
            return None
        if isinstance(rates, tuple):
            return rates[min(index, len(rates) - 1)]
        return float(rates) * self.decay**index


class Round(Section):
    """A round appended by hand."""

    dataset: RecipePath | None = None
    """Another dataset recipe; default: the build's."""
    learning_rate: Positive | None = None
    """Default: the law goes on."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    strength: Literal["auto", "damped"] | Strength | None = None
    train: dict[str, Any] = Field(default_factory=dict)
    """Keys of [train] that differ in this round: train = { batch_size = 2, warmup = 0.1 }."""

    @field_validator("train")
    @classmethod
    def _paths_as_in_train(cls, train: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Here, as [train] itself is made of these keys when nobody knows the folder any more."""
        path = train.get("accelerate_config")
        if not path or not isinstance(path, str):
            return train
        return {**train, "accelerate_config": str(from_recipe_folder(Path(path), info))}


@dataclass(frozen=True)
class RoundLaw:
    """One round as it will run. `epochs` or `steps` is set, never both."""

    number: int
    dataset: RecipePath
    learning_rate: float | None
    """Peak; None until the trials of learning_rate = "auto" have found it."""
    decay: float
    """What the rate that trials find is multiplied by in this round."""
    epochs: int | None
    steps: int | None
    strength: float | None
    """None: searched on held-out loss."""
    train: Train
    """[train] with what this round overrides."""
    live: bool = False
    """Whether captions are encoded as it goes, not cached: its text encoders learn, or those of a
    round before it did, so that it starts from others than the origin's."""
    apart: bool = False
    """Whether the search finds the text encoders a strength of their own."""
    redone: int = 0
    """How often a person had the round done again, each time with another seed."""
