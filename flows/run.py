"""`urushi run RECIPE`: a job as a Prefect flow in this process.

Its server is the one that PREFECT_API_URL names, or that of this workspace's `urushi up`, or an
embedded one that ends with the run. Receipts decide what is done; a run that is finished is left
alone and Prefect not even started.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

from flows.address import known
from flows.scale import scaled
from flows.server import started
from flows.settings import prepare
from flows.work import Part, PartRun, at_work
from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.runs import finished, run_fingerprint, run_root
from pipeline.errors import RequestError
from pipeline.progress import Progress


def run_recipe(
    job: Job, progress: Progress, parts: Sequence[Part] | None = None
) -> tuple[PartRun, ...]:
    """Does all of `job` that is not done yet; returns what each part came to.

    Where a run finished before and all is still there, nothing is started and () returned.

    Args:
        parts: what the flow walks instead of the rounds' parts.

    Raises:
        RequestError: Prefect is not installed, the base is not one that can be trained, or the
            workspace cannot be written.
        BusyError: the same recipe runs already.
        UrushiError: whatever a part raised, unchanged.
    """
    job = scaled(job)
    root, fingerprint = run_root(job), run_fingerprint(job)
    if parts is None and finished(root, fingerprint):
        progress.say(f"{root.name} is finished. Nothing to do.")
        return ()
    if not has_prefect():
        raise RequestError(
            "`urushi run` needs Prefect, which is not installed. Install it, or run the stages by "
            "hand, which needs none: urushi download, caption, resize, cache, train, preview."
        )
    with at_work(job, progress, parts) as work:
        began = time.monotonic()
        with _server(job, progress):
            # Prefect reads its settings at import, so not before now.
            from flows.graph import walk_here

            seconds = time.monotonic() - began
            work.runs.append(PartRun("prefect", Outcome("prefect", False, ""), seconds))
            walk_here(work)
        return tuple(work.runs)


def has_prefect() -> bool:
    """Whether Prefect is installed; does not import it."""
    try:
        return find_spec("prefect") is not None
    except ImportError:
        return False


@contextmanager
def _server(job: Job, progress: Progress) -> Iterator[None]:
    """Makes PREFECT_API_URL point to a server that answers: the user's, or one of ours for now."""
    home = prepare(job.workspace.root)
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    standing = known(job.workspace.root)
    if standing is not None:
        with _address(standing):
            yield
        return
    progress.say("Starting Prefect …")
    with started(home) as server, _address(server.address):
        # Its import takes seconds, which the server needs to start anyway.
        import_module("prefect")
        server.wait()
        yield


@contextmanager
def _address(api: str) -> Iterator[None]:
    os.environ["PREFECT_API_URL"] = api
    try:
        yield
    finally:
        del os.environ["PREFECT_API_URL"]
