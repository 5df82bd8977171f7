"""The build recipe: which base, which pictures, and the rounds laid over it."""

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from pipeline.recipe.base import Base
from pipeline.recipe.baseline import Baseline
from pipeline.recipe.cache import Cache
from pipeline.recipe.card import Card
from pipeline.recipe.lora import Lora
from pipeline.recipe.optimizers import averages
from pipeline.recipe.preview import Preview
from pipeline.recipe.resize import Resize
from pipeline.recipe.rounds import DAMPED, Round, RoundLaw, Rounds
from pipeline.recipe.scale import Scale
from pipeline.recipe.section import Name, RecipePath, Section
from pipeline.recipe.sentences import sentences
from pipeline.recipe.train import Train


class DatasetSource(Section):
    """Which pictures."""

    recipe: RecipePath
    """The dataset recipe's file."""
    repeats: int = Field(1, ge=1, le=1000)
    """How often an epoch shows each of its pictures."""


class FurtherDataset(DatasetSource):
    """[[datasets]]: pictures that every round is shown beside those of [dataset], in batches of
    their own. None of them is held out."""

    weight: float = Field(1.0, gt=0, le=10)
    """What the loss of one of its pictures counts beside one of [dataset]'s."""
    regularisation: bool = False
    """Whether it shows what the model should keep of what it can already (prior preservation:
    Ruiz et al. 2022, arXiv 2208.12242, section 3.3), so that `urushi check` looks at its pictures
    with that in mind."""


class BuildRecipe(Section):
    """What is done with the pictures."""

    name: Name
    """The folder under WORKSPACE/builds."""
    seed: int = Field(0, ge=0, lt=2**63)
    base: Base
    dataset: DatasetSource
    datasets: tuple[FurtherDataset, ...] = ()
    resize: Annotated[Resize, Field(default_factory=Resize)]
    cache: Annotated[Cache, Field(default_factory=Cache)]
    lora: Annotated[Lora, Field(default_factory=Lora)]
    train: Annotated[Train, Field(default_factory=Train)]
    rounds: Annotated[Rounds, Field(default_factory=Rounds)]
    round: tuple[Round, ...] = ()
    baseline: Annotated[Baseline, Field(default_factory=Baseline)]
    preview: Annotated[Preview, Field(default_factory=Preview)]
    card: Annotated[Card, Field(default_factory=Card)]
    scale: Annotated[Scale, Field(default_factory=Scale)]
    silence: tuple[str, ...] = ()
    """Codes of `urushi check`'s warnings that you have thought about."""

    @model_validator(mode="after")
    def _has_rounds(self) -> Self:
        if self.rounds.count + len(self.round) == 0:
            raise ValueError("has no rounds: set [rounds].count or add a [[round]] table")
        files = [further.recipe for further in self.datasets]
        if len(set(files)) < len(files) or self.dataset.recipe in files:
            raise ValueError("names a dataset twice in [dataset] and [[datasets]]; use repeats")
        if self.rounds.epochs is None and self.rounds.steps is None:
            raise ValueError("[rounds] needs epochs or steps")
        return self

    @model_validator(mode="after")
    def _rounds_train_as_train_may(self) -> Self:
        """With [train]'s keys: two that each do may not do together."""
        for number, by_hand in enumerate(self.round, 1):
            try:
                self._train(by_hand)
            except ValidationError as error:
                said = " ".join(sentences(Train, error.errors(), "[train] with it"))
                place = f"[[round]] number {number}, train"
                raise ValueError(f"{place}: {said.removesuffix('.')}") from None
        return self

    @model_validator(mode="after")
    def _lora_goes_with_its_rounds(self) -> Self:
        laws = self.law()
        for refused in (*dora_refusals(self, laws), *max_norm_refusals(self, laws)):
            raise ValueError(refused)
        return self

    @model_validator(mode="after")
    def _caches_the_masks_it_trains_with(self) -> Self:
        if self.cache.masks is None and any(law.train.masked_loss for law in self.law()):
            raise ValueError(
                "has masked_loss in [train] or a round and no masks: set [cache].masks to "
                '"alpha" or "files"'
            )
        return self

    @model_validator(mode="after")
    def _parts_what_there_is(self) -> Self:
        if self.rounds.encoders_apart and not any(law.apart for law in self.law()):
            raise ValueError(
                "has encoders_apart in [rounds], and no round's text encoders learn: set [train]."
                "text_encoder_rate"
            )
        return self

    @property
    def caches_text(self) -> bool:
        """Whether any round is shown what the origin's text encoders give: they are all live from
        the first on whose encoders learn."""
        return not self.law()[0].live

    def law(self) -> tuple[RoundLaw, ...]:
        """Every round in order: the law's, then those appended by hand."""
        rounds, live = self.rounds, False
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
            train = self._train(by_hand)
            live = live or train.trains_text
            laws.append(
                RoundLaw(
                    number=index + 1,
                    dataset=by_hand.dataset or self.dataset.recipe,
                    learning_rate=by_hand.learning_rate or rounds.rate(index),
                    decay=rounds.decay**index,
                    epochs=epochs,
                    steps=steps,
                    strength=_strength(rounds, by_hand, index),
                    train=train,
                    live=live,
                    apart=rounds.encoders_apart and train.trains_text,
                )
            )
        return tuple(laws)

    def _train(self, by_hand: Round) -> Train:
        if not by_hand.train:
            return self.train
        return Train.model_validate({**self.train.model_dump(), **by_hand.train})


def dora_refusals(recipe: BuildRecipe, laws: tuple[RoundLaw, ...]) -> Iterator[str]:
    """What cannot be had with [lora].dora: all that takes a round's delta for a sum."""
    if not recipe.lora.dora:
        return
    rounds, several = recipe.rounds, len(laws) > 1
    because = "a DoRA's effect depends on the weights below it and is no sum"
    if rounds.start in ("carried", "pissa"):
        yield f'[rounds].start = "{rounds.start}" with [lora].dora: {because}. Use another start'
    if rounds.refits and several:
        yield f"[rounds].refit with [lora].dora: {because}. Set refit = false"
    if recipe.baseline.single:
        yield f"[baseline].single with [lora].dora: {because}. Set single = false"
    if any(law.train.earlier_beside for law in laws):
        yield (
            f"[train] in a precision or storage that puts earlier rounds beside the base, with "
            f"[lora].dora: {because}. Use fp16 or float32"
        )
    if any(law.train.storage not in ("auto", "float32") for law in laws):
        yield '[train].storage with [lora].dora: it reads the weights. Use storage = "auto"'


def max_norm_refusals(recipe: BuildRecipe, laws: tuple[RoundLaw, ...]) -> Iterator[str]:
    """What [lora].max_norm would undo."""
    if recipe.lora.max_norm is None:
        return
    if recipe.rounds.start == "carried":
        yield (
            '[lora].max_norm with [rounds].start = "carried": it would scale back what was '
            "carried over. Use another start"
        )
    if recipe.rounds.start == "pissa":
        yield (
            '[lora].max_norm with [rounds].start = "pissa": both factors scaled back do not scale '
            "what they add. Use another start"
        )
    if any(law.train.ema_decay for law in laws):
        yield (
            "[lora].max_norm with [train].ema_decay: the average of factors within a norm may lie "
            "beyond it. Take one of them out"
        )
    names = [law.train.optimizer for law in laws if averages(law.train.optimizer)]
    if names:
        yield (
            f"[lora].max_norm with [train].optimizer {names[0]}, which trains at one point and "
            "is judged at another. Use another optimizer"
        )


def _strength(rounds: Rounds, by_hand: Round, index: int) -> float | None:
    """What a round is merged at; None where that is searched."""
    strength = by_hand.strength if by_hand.strength is not None else rounds.strength
    if isinstance(strength, tuple):
        strength = strength[min(index, len(strength) - 1)]
    if strength == "damped":
        return DAMPED
    return None if strength == "auto" else float(strength)
