"""The work pool `urushi`: one run at a time on the GPU, and one beside it that needs none.

A limit of the pool's queues, and not of the deployments: a deployment's limit hangs on a lease that
a run must renew, and a server that is away for five minutes then ends a run of days. Nights that
were missed are dealt with by the doctor.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, PrefectException

from pipeline.errors import UrushiError

POOL = "urushi"
GPU, CPU = "gpu", "cpu"
"""Queues: builds, and data flows."""
LIMIT = 1
"""Runs of a queue at a time."""


@contextmanager
def connected() -> Iterator[SyncPrefectClient]:
    """A client of the server that PREFECT_API_URL names.

    Raises:
        UrushiError: it does not answer, or refuses what it is asked.
    """
    try:
        with get_client(sync_client=True) as client:
            yield client
    except (httpx.HTTPError, PrefectException) as error:
        raise UrushiError(
            f"Prefect's server does not answer ({type(error).__name__}: {error}). "
            "`urushi up` runs one, or set PREFECT_API_URL to yours."
        ) from error


def ensure_pool(client: SyncPrefectClient, name: str = POOL) -> None:
    """Makes the pool and its queues, and lets them run: what `urushi drain` paused goes on."""
    try:
        client.create_work_pool(
            WorkPoolCreate(name=name, type="process", concurrency_limit=2 * LIMIT)
        )
    except ObjectAlreadyExists:
        pause(client, False, name)
    there = {queue.name: queue for queue in client.read_work_queues(work_pool_name=name)}
    for queue in (GPU, CPU):
        if queue not in there:
            client.create_work_queue(queue, concurrency_limit=LIMIT, work_pool_name=name)


def pause(client: SyncPrefectClient, paused: bool, name: str = POOL) -> None:
    """Whether the pool hands out runs."""
    client.update_work_pool(name, WorkPoolUpdate(is_paused=paused))
