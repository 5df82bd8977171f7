"""What one round's training is asked to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artefacts.strength import Strength
from pipeline.recipe.rounds import StartPolicy
from pipeline.train.rate import Phase


@dataclass(frozen=True)
class Start:
    """How the LoRA starts, and the merged LoRAs before it, in order."""

    policy: StartPolicy = "fresh"
    loras: tuple[Path, ...] = ()
    strengths: tuple[Strength, ...] = ()
    init: Path | None = None
    """A LoRA file whose delta it goes on with, instead of the policy."""

    @property
    def aims(self) -> bool:
        """Whether a gradient is asked for directions."""
        return self.init is None and self.policy in ("gradient", "carried")

    @property
    def principal(self) -> bool:
        """Whether the weights are asked for their leading directions."""
        return self.init is None and self.policy == "pissa"


@dataclass(frozen=True)
class Earlier:
    """An earlier round's LoRA that a round starts from without its being merged."""

    name: str
    file: Path
    strength: Strength


@dataclass(frozen=True)
class Source:
    """Pictures that are shown beside a round's own."""

    pictures: tuple[str, ...]
    """md5s, sorted."""
    latents: Path
    texts: Path
    """Of text shards; of captions where the training is live."""
    repeats: int
    """How often an epoch shows each."""
    weight: float
    """What the loss of one counts."""


@dataclass(frozen=True)
class RoundTraining:
    """One attempt at a round's LoRA."""

    folder: Path
    """Where its resume points, its losses, the LoRA and the receipt go."""
    fingerprint: str
    settings: Mapping[str, Any]
    """What the fingerprint is of, as JSON values: to say what differs where another is found."""
    round: int
    seed: int
    learning_rate: float
    epochs: int | None
    steps: int | None
    """One of epochs and steps is set."""
    phase: Phase
    """The piece of a cosine that the rate runs through."""
    snapshots: int
    """The LoRA is also kept after each of so many equal parts of the steps; 0: at the end alone."""
    checkpoint: Path | None
    """What the LoRA is trained on: an earlier round's checkpoint, or None for the origin."""
    beside: tuple[Earlier, ...]
    """LoRAs that stand beside those weights: earlier rounds that their precision would hide."""
    pictures: tuple[str, ...]
    """md5s to train on; the held-out ones are not among them."""
    latents: Path
    texts: Path
    """Of text shards; of captions where the training is live."""
    stop: Path
    """Where this file appears, the training saves, removes it and ends."""
    force: bool
    """Whether to go on from a resume point that was made under other settings."""
    start: Start = Start()
    repeats: int = 1
    """How often an epoch shows each of `pictures`."""
    further: tuple[Source, ...] = ()
    live: bool = False
    """Whether captions are encoded as the training goes: by encoders that learn in it, or may have
    learnt in an earlier round."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that is shown, the round's own pictures first."""
        own = Source(self.pictures, self.latents, self.texts, self.repeats, 1.0)
        return (own, *self.further)
