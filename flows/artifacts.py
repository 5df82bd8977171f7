"""What a run leaves in Prefect to look at: a page for each round, the history, progress, trouble.

Keys begin with the name of the build or dataset; the same key is one page with its versions. None
of it decides anything, so a server that cannot take it is no reason to end a run.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException
from prefect.logging import get_logger

from flows.pages import history, round_page, trouble_page
from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.ledger import read_ledger
from pipeline.artefacts.runs import run_root
from pipeline.errors import GateStopped, Interrupted, NeedsDecision, UrushiError
from pipeline.progress import as_line

_ROUND = re.compile(r"round-(\d+)-(\w+)")
LAST_PART = "preview"
"""Of a round: then its row and its grid are there."""


class Artifacts:
    """Of one run of `job`; used inside its flow."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._name = key(run_root(job).name)
        self._changed: set[int] = set()
        self._progress: UUID | None = None

    def done(self, part: str, outcome: Outcome) -> None:
        """After each part: the page of a round once it is complete, if this run did any of it."""
        found = _ROUND.fullmatch(part)
        if found is None:
            return
        number = int(found[1])
        if not outcome.already:
            self._changed.add(number)
        if found[2] == LAST_PART and number in self._changed:
            self._changed.discard(number)
            with _optional():
                self._round(number)

    def _round(self, number: int) -> None:
        folder = self._job.folder
        ledger = read_ledger(folder.ledger)
        rows = [row for row in ledger.rounds if row.round == number]
        if not rows:
            return
        create_markdown_artifact(
            round_page(folder, ledger, rows[0]),
            key=f"{self._name}-round-{number:02d}",
            description=f"Round {number} of {ledger.build}: {rows[0].decision}",
        )
        create_table_artifact(
            history(ledger),
            key=f"{self._name}-history",
            description=f"All rounds of {ledger.build} so far",
        )

    def failed(self, error: Exception) -> None:
        """A page that says what went wrong and what to do; none for a stop that was asked for."""
        if isinstance(error, GateStopped | Interrupted | NeedsDecision):
            return
        with _optional():
            create_markdown_artifact(
                trouble_page(self._job, error),
                key=f"{self._name}-trouble",
                description="Why the run ended, and what to do",
            )

    def progress(self, what: str, done: int, total: int, note: str) -> None:
        """How far a bar is, in one place for the whole run."""
        percent = min(100.0, round(100 * done / total, 1)) if total else 0.0
        name = f"{self._name}-progress"
        text = as_line(what, done, total, "", note)
        with _optional():
            if self._progress is None:
                self._progress = cast(UUID, create_progress_artifact(percent, name, text))
            else:
                update_progress_artifact(self._progress, percent, description=text)


def key(name: str) -> str:
    """`name` as an artifact's key may be: lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "run"


@contextmanager
def _optional() -> Iterator[None]:
    try:
        yield
    except (PrefectException, httpx.HTTPError, UrushiError, OSError) as error:
        get_logger("urushi").warning("An artifact could not be written: %s", error)
