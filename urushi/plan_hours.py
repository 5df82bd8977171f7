"""Past runs' ledgers into seconds a step, and so into the hours that a recipe's rounds take."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.artefacts.job import Job
from pipeline.artefacts.ledger import read_ledger
from pipeline.artefacts.workspace import BuildFolder
from pipeline.errors import UrushiError
from urushi.table import duration


@dataclass(frozen=True)
class Rate:
    """What a step took, all parts of the rounds told apart."""

    build: str
    rounds: int
    step: float
    """Seconds of training a step."""
    beside: float
    """Seconds of everything else a round: strength, merge, preview."""


def measured(job: Job) -> Rate | None:
    """The rate of this build's own rounds, or of a build in the workspace that trains alike."""
    own = _rate(job.folder)
    if own is not None:
        return own
    builds = job.workspace.root / "builds"
    wanted = _kind(job.recipe.model_dump(mode="json"))
    for folder in sorted(builds.iterdir()) if builds.is_dir() else []:
        place = job.workspace.build(folder.name)
        if _kind(_recipe(place)) == wanted and (rate := _rate(place)) is not None:
            return rate
    return None


def _rate(folder: BuildFolder) -> Rate | None:
    try:
        ledger = read_ledger(folder.ledger)
    except UrushiError:
        return None
    rows = [row for row in ledger.rounds if row.steps and row.phases.get("train")]
    if not rows:
        return None
    # Every attempt takes its steps; the seconds are of all of them together.
    steps = sum(row.steps * row.attempts for row in rows)
    trained = sum(row.phases["train"] for row in rows)
    return Rate(
        ledger.build,
        len(rows),
        trained / steps,
        sum(row.seconds - row.phases["train"] for row in rows) / len(rows),
    )


def _kind(recipe: dict[str, Any]) -> list[Any]:
    """What decides how long a step takes."""
    section = {name: recipe.get(name) or {} for name in ("base", "resize", "lora", "train")}
    return [
        section["base"].get("checkpoint"),
        *(section["resize"].get(key) for key in ("resolution", "more_resolutions")),
        *(section["lora"].get(key) for key in ("rank", "conv_rank")),
        *(
            section["train"].get(key)
            for key in ("batch_size", "accumulation", "precision", "gradient_checkpointing")
        ),
    ]


def _recipe(folder: BuildFolder) -> dict[str, Any]:
    try:
        return tomllib.loads(folder.recipe.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return {}


def time_lines(job: Job, steps: int | None) -> Iterator[str]:
    """What is known of the time that the rounds take, `steps` of them in all (None: unknown)."""
    rate = measured(job)
    if rate is None:
        yield (
            "training: unknown until a round has run on this machine; then this says seconds a step"
        )
        return
    whose = "this build" if rate.build == job.recipe.name else f"{rate.build}, which trains alike"
    yield (
        f"{rate.step:.3g} s a step, and {duration(rate.beside)} a round beside training, as "
        f"measured in {rate.rounds} rounds of {whose}"
    )
    if steps is not None:
        rounds = len(job.recipe.law())
        whole = rate.step * steps + rate.beside * rounds
        yield f"{duration(whole)} for all {rounds} rounds ({steps:,} steps), if none is tried twice"
