"""Shards of work over processes, or whatever else runs them: one small interface.

Rooms hand over tasks, each of which is a function of itself alone and writes its own receipt, and
do not know where they run. `Processes` is this machine; `flows` has one for a Dask cluster.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from multiprocessing.sharedctypes import Synchronized
from typing import Protocol, TypeVar

from pipeline.errors import UrushiError

Advance = Callable[[int], None]


class Task(Protocol):
    """One shard's work. Pickled on its way to where it is done."""

    @property
    def count(self) -> int:
        """Items in it, for the bar."""


AnyTask = TypeVar("AnyTask", bound=Task)


class Executor(Protocol):
    """Where tasks are done."""

    def run(
        self,
        work: Callable[[AnyTask, Advance], None],
        tasks: Sequence[AnyTask],
        advance: Advance,
    ) -> None:
        """Does `work` for each of `tasks`, in any order; `advance` counts items done.

        The first error stops the work, after the shards under way; what is done stays done.

        Raises:
            UrushiError: what `work` raised, or a process died.
        """


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not on every system.
        return os.cpu_count() or 1


class Processes:
    """This machine: so many processes, or this one alone where there is but one or one task.

    With `devices` GPUs the processes take turns at them, by the name that accelerate reads.
    """

    def __init__(self, processes: int, devices: int = 0) -> None:
        self.processes = processes
        self.devices = devices

    def run(
        self,
        work: Callable[[AnyTask, Advance], None],
        tasks: Sequence[AnyTask],
        advance: Advance,
    ) -> None:
        if self.processes <= 1 or len(tasks) <= 1:
            for task in tasks:
                work(task, advance)
            return
        # Not fork: torch, vips and Prefect hold threads and locks in the parent.
        context = multiprocessing.get_context("spawn")
        processes = min(self.processes, len(tasks))
        threads = max(1, cores() // processes)
        pool = ProcessPoolExecutor(
            max_workers=processes,
            mp_context=context,
            initializer=_start,
            initargs=(context.Value("i", 0), self.devices, threads),
        )
        try:
            pending = {pool.submit(work, task, silent): task.count for task in tasks}
            for finished in as_completed(pending):
                finished.result()
                advance(pending[finished])
        except BrokenProcessPool:
            raise UrushiError(
                "A process that worked on shards was killed, most likely for want of memory. "
                "Finished shards stand: run the same command again, with fewer --workers."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def silent(count: int) -> None:
    """A worker's `advance`: the parent counts whole shards."""


def _start(number: "Synchronized[int]", devices: int, threads: int) -> None:
    """Runs once in each process, before anything heavy is imported there."""
    # The parent decides what an interrupt means; shards under way are finished first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # Workers of a killed parent would wait for work for ever.
        threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    # Cores are shared out among processes: threads of all would only wait for one another.
    os.environ["VIPS_CONCURRENCY"] = "1"
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if devices:
        with number.get_lock():
            turn = number.value
            number.value += 1
        os.environ["ACCELERATE_TORCH_DEVICE"] = f"cuda:{turn % devices}"


def _die_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
