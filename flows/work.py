"""The work of a run, without Prefect: its parts in order, and last_run.json as they go by."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import Protocol, Self

from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.locks import held
from pipeline.artefacts.runs import (
    RUN_LOCK,
    State,
    products,
    run_fingerprint,
    run_root,
    write_run,
)
from pipeline.errors import GateStopped, Interrupted, NeedsDecision, UrushiError
from pipeline.models.inspect import inspect, require_supported
from pipeline.progress import Progress
from pipeline.stages import DATA_STAGES
from pipeline.train.machine import require_gpu
from pipeline.train.trackers import require_trackers


class Part(Protocol):
    """A stage of pipeline.stages or a part of pipeline.rounds."""

    @property
    def name(self) -> str: ...

    @property
    def run(self) -> Callable[[Job, Progress], Outcome]: ...


@dataclass(frozen=True)
class PartRun:
    """One part of this run and its seconds."""

    name: str
    outcome: Outcome
    seconds: float


@dataclass(frozen=True)
class Work:
    """A job under its run lock: the parts to walk, and how each is done."""

    job: Job
    parts: tuple[Part, ...]
    progress: Progress
    runs: list[PartRun]
    """What is done so far; grows."""
    begin: Callable[[str], None]
    """Is told the part that begins."""

    def perform(self, part: Part) -> Outcome:
        """Does one part. What it raises crosses unchanged."""
        self.begin(part.name)
        started = time.monotonic()
        outcome = part.run(self.job, self.progress)
        self.runs.append(PartRun(part.name, outcome, time.monotonic() - started))
        done = "already done" if outcome.already else "done"
        self.progress.say(f"{part.name}: {done}{': ' if outcome.summary else ''}{outcome.summary}")
        return outcome


@contextmanager
def at_work(job: Job, progress: Progress, parts: Sequence[Part] | None = None) -> Iterator[Work]:
    """`job` for this process alone, with last_run.json kept up to date however it ends.

    Args:
        parts: what is walked after the data stages instead of the rounds' parts. Where they are
            none, a build's last_run.json stays as it is.

    Raises:
        BusyError: another process runs the same recipe.
        RequestError: the base is not one that can be trained, a tracker is not installed, or a
            round needs a GPU and there is none here.
    """
    # A build's data alone says nothing of how far the build is.
    recorded = job.build is None or parts is None or len(parts) > 0
    with held(run_root(job) / RUN_LOCK), _Log(job, recorded) as log:
        if parts is None and job.build is not None:
            # Now, not after hours of downloading.
            trains = [law.train for law in job.build.law()]
            require_trackers([name for train in trains for name in train.trackers])
            require_gpu(trains)
            require_supported(inspect(job.build.base))
        later = build_parts(job) if parts is None else tuple(parts)
        yield Work(job, (*data_parts(job), *later), progress, log.runs, log.begin)


def data_parts(job: Job) -> tuple[Part, ...]:
    """The data stages that `job` can run: all, or those that a dataset recipe is enough for."""
    return tuple(stage for stage in DATA_STAGES if job.build is not None or not stage.needs_build)


@dataclass(frozen=True)
class _Asked:
    """A part that is done otherwise than its stage would."""

    name: str
    run: Callable[[Job, Progress], Outcome]


def refreshing(job: Job) -> tuple[Part, ...]:
    """The data stages, of which the first asks the sites for newer posts too."""

    def ask_anew(job: Job, progress: Progress) -> Outcome:
        outcome: Outcome = import_module("pipeline.download.stage").run(job, progress, refresh=True)
        return outcome

    first, *others = data_parts(job)
    return (_Asked(first.name, ask_anew), *others)


def build_parts(job: Job) -> tuple[Part, ...]:
    """The parts of the rounds, in order; none for a dataset recipe."""
    if job.build is None:
        return ()
    parts: tuple[Part, ...] = import_module("pipeline.rounds.stage").parts(job)
    return parts


class _Log:
    """Keeps last_run.json up to date while the run goes on and when it ends, however it ends.

    Of a run that is not `recorded` it only remembers the parts.
    """

    def __init__(self, job: Job, recorded: bool) -> None:
        self.runs: list[PartRun] = []
        self._job = job
        self._recorded = recorded
        self._fingerprint = run_fingerprint(job)
        self._part: str | None = None

    def __enter__(self) -> Self:
        self._write("running")
        return self

    def begin(self, part: str) -> None:
        self._part = part
        self._write("running")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._part = None
            self._write("finished")
            return
        # Where this cannot be written either (a full disk), the record goes on saying "running"
        # while nobody holds the lock, which reads as interrupted; what matters is the first error.
        with suppress(UrushiError, OSError):
            if isinstance(error, GateStopped):
                self._write("stopped by the gate", str(error))
            elif isinstance(error, NeedsDecision):
                self._write("waiting", str(error))
            elif isinstance(error, Exception) and not isinstance(error, Interrupted):
                self._write("failed", str(error) or type(error).__name__)
            else:
                self._write("interrupted")

    def _write(self, state: State, error: str | None = None) -> None:
        if not self._recorded:
            return
        write_run(
            run_root(self._job),
            state,
            fingerprint=self._fingerprint,
            part=self._part,
            error=error,
            files=products(self._job) if state == "finished" else None,
            seconds={run.name: run.seconds for run in self.runs},
        )
