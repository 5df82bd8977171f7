"""build.json: the ledger of a build. One row per round, decisions as data."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipeline.artefacts.files import write_text
from pipeline.artefacts.records import Record
from pipeline.errors import UrushiError

Decision = Literal["accepted", "accepted on retry", "rejected", "always"]


class Candidate(Record):
    """One strength that was tried, and its mean loss on the held-out half used for choosing."""

    strength: float
    loss: float


class RoundRow(Record):
    """Everything about one finished round."""

    round: int
    dataset: str
    lora: str
    """Relative to the build's folder."""
    sha256: str
    """Of the LoRA file."""
    rank: int
    alpha: float
    learning_rate: float
    """Peak of the attempt that counts."""
    steps: int
    strength: float
    """0 where the round was rejected."""
    heldout_before: float
    heldout_after: float
    """Mean loss on the held-out half that the strength was not chosen on."""
    improvement_low: float
    improvement_high: float
    """95 % bootstrap interval of the mean paired difference before - after."""
    decision: Decision
    candidates: tuple[Candidate, ...]
    attempts: int
    train_loss: float
    """Mean over the last tenth of the steps."""
    checkpoint_sha256: str
    """Of the merged checkpoint, whether it is kept or not."""
    cast_loss: float
    """Share of this round's delta that the cast to the origin's dtype hides, 0 to 1."""
    seconds: float
    phases: dict[str, float]
    """Seconds by part: train, strength, merge, preview."""


class Ledger(Record):
    """WORKSPACE/builds/NAME/build.json."""

    build: str
    recipe: str
    seed: int
    origin: str
    origin_blake3: str
    prediction_type: str
    status: Literal["running", "finished", "stopped by the gate"]
    heldout_pictures: int
    heldout_origin: float | None
    """The origin's loss on the reporting half; None before round 1 is judged."""
    rounds: tuple[RoundRow, ...]
    final: str | None
    final_sha256: str | None
    final_lora: str | None
    seconds: dict[str, float]
    """Of the data stages, by name."""


def read_ledger(path: Path) -> Ledger:
    """The ledger in `path`. Raises UrushiError where it is missing or was damaged."""
    try:
        return Ledger.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UrushiError(
            f"There is no {path}: this build has not run. Use `urushi run`."
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        at = f" at {place}" if place else ""
        raise UrushiError(
            f"{path} is damaged{at}: {problem['msg']}. Delete it; `urushi run` gathers it again."
        ) from None


def write_ledger(path: Path, ledger: Ledger) -> None:
    write_text(path, ledger.model_dump_json(indent=2) + "\n")
