"""Shards spread over this machine's cores: one process each, or none where it would not pay."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

from pipeline.errors import UrushiError
from pipeline.resize.shards import ShardTask, make_shard


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not on every system.
        return os.cpu_count() or 1


def make_shards(tasks: Sequence[ShardTask], processes: int, advance: Callable[[int], None]) -> None:
    """Makes every shard of `tasks`; `advance` is called with pictures finished.

    The first error stops the work, after the shards under way; shards that are done stay done.

    Raises:
        DiskFullError, RequestError: see `make_shard`.
        UrushiError: a process died.
    """
    if processes <= 1 or len(tasks) <= 1:
        for task in tasks:
            make_shard(task, advance)
        return
    pool = ProcessPoolExecutor(
        max_workers=min(processes, len(tasks)),
        # Not fork: torch, vips and Prefect hold threads and locks in the parent.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
    )
    try:
        pending = {pool.submit(make_shard, task): len(task.originals) for task in tasks}
        for finished in as_completed(pending):
            finished.result()
            advance(pending[finished])
    except BrokenProcessPool:
        raise UrushiError(
            "A process that resized pictures was killed, most likely for want of memory. Finished "
            "shards stand: run the same command again."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Runs once in each process."""
    from pipeline.resize.read import vips_engine

    # The parent decides what an interrupt means; shards under way are finished first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # Workers of a killed parent would wait for work for ever.
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    engine = vips_engine()
    if engine is not None:
        engine.prepare(threads=1)


def _die_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
