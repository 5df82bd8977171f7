"""What one round's training is asked to do."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RoundTraining:
    """One attempt at a round's LoRA."""

    folder: Path
    """Where its resume point, its losses, the LoRA and the receipt go."""
    fingerprint: str
    round: int
    seed: int
    learning_rate: float
    epochs: int | None
    steps: int | None
    """One of epochs and steps is set."""
    checkpoint: Path | None
    """What the LoRA is trained on: an earlier round's checkpoint, or None for the origin."""
    pictures: tuple[str, ...]
    """md5s to train on; the held-out ones are not among them."""
    latents: Path
    texts: Path
