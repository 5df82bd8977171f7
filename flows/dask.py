"""Shards over a Dask cluster: the same tasks that `Processes` runs, sent to other machines.

Workers need this program and the workspace under the same paths, and neither Prefect nor its
server. Prefect's own runner for Dask was tried: it makes every shard a task run that its worker
reports to the server, which the embedded one, on loopback, cannot take from another machine, and
importing Prefect on each worker took longer than the work (14.8 s for 2 s of it). The stage stays
one Prefect task; its shards have receipts.

A lost worker's shards are given to others by Dask. Files are renamed into place whole and a shard
that is made is not made again, so a worker that was only cut off does no harm when it comes back.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError

from distributed import Client, KilledWorker, as_completed

from pipeline.artefacts.executor import Advance, AnyTask, silent
from pipeline.errors import RequestError, UrushiError

PATIENCE = 20
"""Seconds to wait for the scheduler."""


class Cluster:
    """The workers of the Dask scheduler at `address`."""

    def __init__(self, address: str) -> None:
        self.address = address

    def run(
        self,
        work: Callable[[AnyTask, Advance], None],
        tasks: Sequence[AnyTask],
        advance: Advance,
    ) -> None:
        """See `Executor`. Raises RequestError where no scheduler answers."""
        try:
            client = Client(self.address, timeout=PATIENCE, set_as_default=False)
        except (OSError, TimeoutError) as error:
            raise RequestError(
                f"No Dask scheduler answers at {self.address} ([scale].dask): {error}. Start one "
                "with `dask scheduler`, and workers with `dask worker ADDRESS --nthreads 1`."
            ) from error
        with client:
            # Not pure: a task that was done in an earlier run is to be looked at again.
            futures = {client.submit(work, task, silent, pure=False): task for task in tasks}
            try:
                for future in as_completed(futures, loop=client.loop):
                    future.result()
                    advance(futures[future].count)
            except KilledWorker as error:
                raise UrushiError(
                    f"A shard took several workers of {self.address} down with it, most likely "
                    f"for want of memory: {error}. Finished shards stand."
                ) from error
            except CancelledError as error:
                raise UrushiError(
                    f"The Dask cluster at {self.address} gave up shards. Finished ones stand: run "
                    "the same command again."
                ) from error
            finally:
                client.cancel(list(futures))
