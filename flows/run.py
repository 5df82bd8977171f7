"""`urushi run RECIPE`: a job as two Prefect flows in this process, against an embedded server.

`data` walks the data stages, `build` the parts of the rounds. Receipts decide what is done; a build
that is finished is left alone and Prefect not even started.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import TracebackType
from typing import Protocol, Self

from flows.server import embedded
from flows.settings import prepare
from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.locks import held
from pipeline.artefacts.runs import (
    RUN_LOCK,
    State,
    finished,
    products,
    run_fingerprint,
    run_root,
    write_run,
)
from pipeline.errors import GateStopped, Interrupted, RequestError, UrushiError
from pipeline.models.inspect import inspect, require_supported
from pipeline.progress import Progress
from pipeline.stages import DATA_STAGES


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


class _Log:
    """Keeps last_run.json up to date while the run goes on and when it ends, however it ends."""

    def __init__(self, job: Job, fingerprint: str) -> None:
        self.runs: list[PartRun] = []
        self._job = job
        self._fingerprint = fingerprint
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
            elif isinstance(error, Exception) and not isinstance(error, Interrupted):
                self._write("failed", str(error) or type(error).__name__)
            else:
                self._write("interrupted")

    def _write(self, state: State, error: str | None = None) -> None:
        write_run(
            run_root(self._job),
            state,
            fingerprint=self._fingerprint,
            part=self._part,
            error=error,
            files=products(self._job) if state == "finished" else None,
            seconds={run.name: run.seconds for run in self.runs},
        )


def data_parts(job: Job) -> tuple[Part, ...]:
    """The data stages that `job` can run: all, or those that a dataset recipe is enough for."""
    return tuple(stage for stage in DATA_STAGES if job.build is not None or not stage.needs_build)


def build_parts(job: Job) -> tuple[Part, ...]:
    """The parts of the rounds, in order; none for a dataset recipe."""
    if job.build is None:
        return ()
    parts: tuple[Part, ...] = import_module("pipeline.rounds.stage").parts(job)
    return parts


def run_recipe(
    job: Job, progress: Progress, parts: Sequence[Part] | None = None
) -> tuple[PartRun, ...]:
    """Does all of `job` that is not done yet; returns what each part came to.

    Where a run finished before and all is still there, nothing is started and () returned.

    Args:
        parts: what the build flow walks instead of the rounds' parts.

    Raises:
        RequestError: Prefect is not installed, the base is not one that can be trained, or the
            workspace cannot be written.
        BusyError: the same recipe runs already.
        UrushiError: whatever a part raised, unchanged.
    """
    root, fingerprint = run_root(job), run_fingerprint(job)
    if parts is None and finished(root, fingerprint):
        progress.say(f"{root.name} is finished. Nothing to do.")
        return ()
    if not _has_prefect():
        raise RequestError(
            "`urushi run` needs Prefect, which is not installed. Install it, or run the stages by "
            "hand, which needs none: urushi download, caption, resize, cache, train, preview."
        )
    with held(root / RUN_LOCK), _Log(job, fingerprint) as log:
        if parts is None and job.build is not None:
            # Now, not after hours of downloading.
            require_supported(inspect(job.build.base))
        _run(job, progress, parts, log)
    return tuple(log.runs)


def _has_prefect() -> bool:
    try:
        return find_spec("prefect") is not None
    except ImportError:
        return False


def _run(job: Job, progress: Progress, parts: Sequence[Part] | None, log: _Log) -> None:
    def work(part: Part) -> Outcome:
        log.begin(part.name)
        started = time.monotonic()
        outcome = part.run(job, progress)
        log.runs.append(PartRun(part.name, outcome, time.monotonic() - started))
        done = "already done" if outcome.already else "done"
        progress.say(f"{part.name}: {done}{': ' if outcome.summary else ''}{outcome.summary}")
        return outcome

    started = time.monotonic()
    with _server(job, progress):
        # Prefect reads its settings at import, so not before now.
        from flows.graph import walk

        log.runs.append(
            PartRun("prefect", Outcome("prefect", False, ""), time.monotonic() - started)
        )
        walk("data", job, data_parts(job), work)
        build = build_parts(job) if parts is None else parts
        if build:
            walk("build", job, build, work)


@contextmanager
def _server(job: Job, progress: Progress) -> Iterator[None]:
    """Makes PREFECT_API_URL point to a server that answers: the user's, or one of ours for now."""
    home = prepare(job.workspace.root)
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    progress.say("Starting Prefect …")
    with embedded(home) as server:
        os.environ["PREFECT_API_URL"] = server.address
        try:
            # Its import takes seconds, which the server needs to start anyway.
            import_module("prefect")
            server.wait()
            yield
        finally:
            del os.environ["PREFECT_API_URL"]
