"""A person's decisions on a round: WORKSPACE/builds/NAME/rounds/NN/decisions.json.

The file is the truth, whoever answers: `urushi approve`, a form in Prefect's interface, or the
default when nobody did. A round that is done again is asked about again; every answer is kept.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from pipeline.artefacts.files import write_text
from pipeline.artefacts.records import Record
from pipeline.errors import RequestError, UrushiError

Answer = Literal["continue", "redo", "stop"]
ANSWERS: tuple[Answer, ...] = ("continue", "redo", "stop")


class Decision(Record):
    """One answer."""

    decision: Answer
    """continue: the next round. redo: this round once more, with another seed. stop: the build ends
    with what is merged so far."""
    strength: Annotated[float, Field(ge=0, le=2)] | None = None
    """Merges this round at this strength instead of the chosen one."""
    lr_scale: Annotated[float, Field(gt=0, le=100)] = 1.0
    """On the learning rate: of all later rounds (continue) or of this one (redo)."""
    who: str
    at: datetime


class Decisions(Record):
    """All questions and answers about one round."""

    asked: tuple[datetime, ...] = ()
    decided: tuple[Decision, ...] = ()

    @property
    def waiting(self) -> bool:
        """Whether a question has no answer yet."""
        return len(self.asked) > len(self.decided)

    @property
    def redone(self) -> int:
        """How often the round was to be done again."""
        return sum(decision.decision == "redo" for decision in self.decided)

    @property
    def last(self) -> Decision | None:
        """The answer that holds; None where there is none, or the round is being done again."""
        if self.waiting or not self.decided or self.decided[-1].decision == "redo":
            return None
        return self.decided[-1]

    @property
    def redo_scale(self) -> float:
        """What all redos make of this round's learning rate."""
        scale = 1.0
        for decision in self.decided:
            scale *= decision.lr_scale if decision.decision == "redo" else 1.0
        return scale


def read_decisions(path: Path) -> Decisions:
    """The decisions in `path`; none without a file. Raises UrushiError for a damaged one."""
    try:
        return Decisions.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Decisions()
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise UrushiError(
            f"{path} is damaged at {place}: {problem['msg']}. Put it right, or delete it: the "
            "round is then asked about again."
        ) from None


def ask(path: Path, now: datetime | None = None) -> Decisions:
    """Asks, unless a question waits already."""
    found = read_decisions(path)
    if found.waiting:
        return found
    return _write(path, found.model_copy(update={"asked": (*found.asked, now or _now())}))


def decide(
    path: Path,
    answer: Answer,
    *,
    who: str,
    strength: float | None = None,
    lr_scale: float = 1.0,
    now: datetime | None = None,
) -> Decisions:
    """Writes the answer to the question that waits.

    Raises:
        RequestError: none waits, or a number is out of its range.
    """
    found = read_decisions(path)
    if not found.waiting:
        raise RequestError(f"No question waits for an answer in {path}.")
    try:
        decision = Decision(
            decision=answer, strength=strength, lr_scale=lr_scale, who=who, at=now or _now()
        )
    except ValidationError as error:
        problem = error.errors()[0]
        raise RequestError(f"{problem['loc'][0]}: {problem['msg']}.") from None
    return _write(path, found.model_copy(update={"decided": (*found.decided, decision)}))


def overdue(found: Decisions, hours: float | None, now: datetime | None = None) -> bool:
    """Whether the question that waits has waited for `hours`; never where that is None."""
    if not found.waiting or hours is None:
        return False
    return (now or _now()) - found.asked[-1] >= timedelta(hours=hours)


def _write(path: Path, decisions: Decisions) -> Decisions:
    write_text(path, decisions.model_dump_json(indent=2) + "\n")
    return decisions


def _now() -> datetime:
    return datetime.now(UTC)
