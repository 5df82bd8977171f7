"""The resume point of a round in training: all that the next step depends on, in one file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.artefacts.files import atomic

FILE = "state.pt"


@dataclass(frozen=True)
class State:
    """After `step` steps. Randomness is counted, so no generator's state is needed."""

    fingerprint: str
    step: int
    factors: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    scaler: Mapping[str, Any]
    losses: tuple[float, ...]
    """Of every step so far."""
    seconds: float
    """Spent in training so far, interruptions left out."""


def save_state(folder: Path, state: State) -> None:
    """Replaces the resume point atomically: a crash leaves the one before."""
    with atomic(folder / FILE) as temporary:
        torch.save({**vars(state), "losses": list(state.losses)}, temporary)


def load_state(folder: Path, fingerprint: str) -> State | None:
    """The resume point in `folder` if it belongs to `fingerprint`, else None."""
    path = folder / FILE
    if not path.exists():
        return None
    table = torch.load(path, map_location="cpu", weights_only=True)
    if table["fingerprint"] != fingerprint:
        return None
    return State(**{**table, "losses": tuple(table["losses"])})
