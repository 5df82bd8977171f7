"""The core's stages and parts as Prefect tasks: thin, and never the judge of what is done.

One task per stage or part. Its state is "Completed", or "Already done" where a receipt proved it;
Prefect's own cache and stored results are off, because they would hand out stale answers when a
file has changed or is gone.
"""

from collections.abc import Callable
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from pipeline.artefacts.job import Outcome
from pipeline.errors import NeedsDecision

WAITS = "Waits for you"
"""The name of the state of a task that asks a person."""
ALREADY = "Already done"
"""The name of the state of a task that found its work done."""


@task(name="part", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def _part(name: str, work: Callable[[], Outcome]) -> Any:
    try:
        outcome = work()
    except NeedsDecision as question:
        # Nothing failed; `perform` raises it where the flow can suspend.
        return Completed(data=question, name=WAITS, message=str(question))
    if outcome.already:
        return Completed(data=outcome, name=ALREADY, message=outcome.summary)
    return outcome


def perform(name: str, work: Callable[[], Outcome]) -> Outcome:
    """Runs `work` as a task called `name`. What it raises crosses unchanged."""
    # A task that returns a state hands its caller that state and not its data; asking for states
    # always makes both cases one.
    result: Outcome | NeedsDecision = _part(name, work, return_state=True).result()
    if isinstance(result, NeedsDecision):
        raise result
    return result
