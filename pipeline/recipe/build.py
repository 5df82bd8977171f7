"""The build recipe: which base, which pictures, and the rounds laid over it."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.recipe.section import Name, RecipePath, Section

Strength = Annotated[float, Field(ge=0, le=2)]
Strengths = Annotated[tuple[Strength, ...], Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Counts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
"""One number for each round; the last repeats."""

HELD_OUT_LEAST, HELD_OUT_MOST = 4, 512
"""Pictures: fewer say nothing, more only cost time."""


class Base(Section):
    """The origin: the checkpoint that round 1 starts from."""

    checkpoint: RecipePath
    """A .safetensors checkpoint of Stable Diffusion 1.5's layout, or a diffusers folder."""
    config: RecipePath | None = None
    """A diffusers folder with the configurations of a single-file checkpoint (no weights needed).
    Without it diffusers takes them from its hub cache, or the hub."""


class DatasetSource(Section):
    """Which pictures."""

    recipe: RecipePath
    """The dataset recipe's file."""


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


class Cache(Section):
    """Latents and text embeddings on disk."""

    batch_size: int = Field(4, ge=1)
    """Pictures encoded together."""
    shard_megabytes: Positive = 256.0
    """The size at which a shard is closed, MB."""


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


class Train(Section):
    """How one round trains."""

    batch_size: int = Field(1, ge=1)
    optimizer: Literal["adamw", "adamw8bit", "lion", "lion8bit"] = "adamw8bit"
    """8-bit ones are bitsandbytes'."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: float = Field(0.01, ge=0)
    scheduler: Literal["constant", "constant_with_warmup", "cosine", "linear"] = (
        "constant_with_warmup"
    )
    """The learning rate inside a round; diffusers' schedules."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of a round's steps over which the rate rises."""
    max_grad_norm: Positive = 1.0
    caption_dropout: float = Field(0.05, ge=0, lt=1)
    """Share of samples trained with the empty caption, which guidance needs."""
    precision: Literal["auto", "fp16", "float32"] = "auto"
    """fp16 is autocast with float32 LoRA weights; auto takes it on a GPU. bf16 is not offered: it
    rounds the base at every product and so hides what late rounds add."""
    gradient_checkpointing: bool = False
    """Less memory for about a third more time."""
    save_every: int = Field(100, ge=1)
    """Steps between resume points."""


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


class Preview(Section):
    """The grids: the same prompts and the same noise for the origin and every round."""

    prompts: tuple[str, ...] = Field(("1girl, solo, masterpiece, best quality",), min_length=1)
    negative: str = ""
    seed: int = Field(0, ge=0)
    steps: int = Field(24, ge=1, le=200)
    guidance: float = Field(6.0, ge=1, le=30)
    width: int | None = Field(None, ge=8, multiple_of=8)
    """Pixels; default: the resolution of [resize]."""
    height: int | None = Field(None, ge=8, multiple_of=8)
    enlarge: int = Field(1, ge=1, le=16)
    """Shown so many times larger, for models that draw small."""


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


class BuildRecipe(Section):
    """What is done with the pictures."""

    name: Name
    """The folder under WORKSPACE/builds."""
    seed: int = Field(0, ge=0, lt=2**63)
    base: Base
    dataset: DatasetSource
    resize: Annotated[Resize, Field(default_factory=Resize)]
    cache: Annotated[Cache, Field(default_factory=Cache)]
    lora: Annotated[Lora, Field(default_factory=Lora)]
    train: Annotated[Train, Field(default_factory=Train)]
    rounds: Annotated[Rounds, Field(default_factory=Rounds)]
    round: tuple[Round, ...] = ()
    preview: Annotated[Preview, Field(default_factory=Preview)]
    silence: tuple[str, ...] = ()
    """Codes of `urushi check`'s warnings that you have thought about."""

    @model_validator(mode="after")
    def _has_rounds(self) -> Self:
        if self.rounds.count + len(self.round) == 0:
            raise ValueError("has no rounds: set [rounds].count or add a [[round]] table")
        if self.rounds.epochs is None and self.rounds.steps is None:
            raise ValueError("[rounds] needs epochs or steps")
        return self

    def law(self) -> tuple[RoundLaw, ...]:
        """Every round in order: the law's, then those appended by hand."""
        rounds = self.rounds
        laws = []
        for index in range(rounds.count + len(self.round)):
            by_hand = self.round[index - rounds.count] if index >= rounds.count else Round()
            epochs, steps = by_hand.epochs, by_hand.steps
            if epochs is None and steps is None:
                if rounds.steps is not None:
                    steps = rounds.steps[min(index, len(rounds.steps) - 1)]
                elif rounds.epochs is not None:
                    epochs = rounds.epochs[min(index, len(rounds.epochs) - 1)]
            elif steps is not None:
                epochs = None
            strength = by_hand.strength if by_hand.strength is not None else rounds.strength
            if isinstance(strength, tuple):
                strength = strength[min(index, len(strength) - 1)]
            laws.append(
                RoundLaw(
                    number=index + 1,
                    dataset=by_hand.dataset or self.dataset.recipe,
                    learning_rate=by_hand.learning_rate
                    or rounds.learning_rate * rounds.decay**index,
                    epochs=epochs,
                    steps=steps,
                    strength=None if strength == "auto" else float(strength),
                )
            )
        return tuple(laws)
