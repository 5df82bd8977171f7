"""A person's decisions on a round: WORKSPACE/builds/NAME/rounds/NN/decisions.json.

The file is the truth, whoever answers: `urushi approve`, a form in Prefect's interface, or the
default when nobody did. Every question names the LoRA that it is about, and an answer holds for
that one alone: a round that is trained anew, by a redo or by another recipe, is asked about again.
Every answer is kept.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

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


class Question(Record):
    """What was asked about."""

    at: datetime
    lora: str
    """sha256 of the round's LoRA."""
    training: str
    """Fingerprint that the round's training had before anybody asked for another seed: what redos
    hold for."""


class Decisions(Record):
    """All questions and answers about one round."""

    asked: tuple[Question, ...] = ()
    decided: tuple[Decision, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _of_a_lora(cls, table: Any) -> Any:
        """The first form's questions were times alone: it is not known what they were about."""
        asked = table.get("asked", ()) if isinstance(table, dict) else ()
        old = isinstance(asked, list) and any(isinstance(question, str) for question in asked)
        return {} if old else table

    @property
    def waiting(self) -> bool:
        """Whether a question has no answer yet."""
        return len(self.asked) > len(self.decided)

    def about(self, lora: str) -> Decision | None:
        """The answer that holds for the LoRA of this sha256; None where there is none."""
        return self._final.get(lora)

    def redos(self, training: str) -> tuple[Decision, ...]:
        """Those that hold for a round of this training."""
        return tuple(
            answer
            for question, answer in self._answered
            if answer.decision == "redo" and question.training == training
        )

    @property
    def strengths(self) -> dict[str, float]:
        """By a LoRA's sha256: what a person wants it merged at."""
        given = {lora: answer.strength for lora, answer in self._final.items()}
        return {lora: strength for lora, strength in given.items() if strength is not None}

    @property
    def _answered(self) -> tuple[tuple[Question, Decision], ...]:
        return tuple(zip(self.asked, self.decided, strict=False))

    @property
    def _final(self) -> dict[str, Decision]:
        return {q.lora: answer for q, answer in self._answered if answer.decision != "redo"}


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


def ask(path: Path, lora: str, training: str, now: datetime | None = None) -> Decisions:
    """Asks about a LoRA, unless that very question waits already; one about another is withdrawn.

    Args:
        lora, training: as in Question.
    """
    found = read_decisions(path)
    if found.waiting and found.asked[-1].lora == lora:
        return found
    before = found.asked[: len(found.decided)]
    question = Question(at=now or _now(), lora=lora, training=training)
    return _write(path, found.model_copy(update={"asked": (*before, question)}))


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
    return (now or _now()) - found.asked[-1].at >= timedelta(hours=hours)


def _write(path: Path, decisions: Decisions) -> Decisions:
    write_text(path, decisions.model_dump_json(indent=2) + "\n")
    return decisions


def _now() -> datetime:
    return datetime.now(UTC)
