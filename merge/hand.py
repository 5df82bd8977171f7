"""A second hand: hashes and writes what is ready while the first reads and sums the next block.

torch, blake3 and the system's calls let go of Python's lock, so that two threads are two cores.
"""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

Task = Callable[[], None]

DEPTH = 8
"""Tasks that may wait: more only keep more memory busy."""


class Hand:
    """Does tasks in the order given, in a thread of its own. Use it in one thread, as a context."""

    def __init__(self) -> None:
        self._tasks: queue.Queue[Task | None] = queue.Queue(DEPTH)
        self._thread = threading.Thread(target=self._run, name="second hand", daemon=True)
        self._changed = threading.Condition()
        self._done = 0
        self._failure: BaseException | None = None
        self.given = 0
        """Tasks given so far: the number of the last one."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits for all tasks; raises what one of them raised, unless something else was raised."""
        if kind is not None:
            self._failure = self._failure or error  # What still waits need not be done.
        self._tasks.put(None)
        self._thread.join()
        if kind is None:
            self._raise()

    def do(self, task: Task) -> None:
        """Gives a task; raises what an earlier one raised."""
        self._raise()
        self.given += 1
        self._tasks.put(task)

    def wait(self, number: int) -> None:
        """Returns when task `number` is done; raises what any task raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._done >= number)
        self._raise()

    def settle(self) -> None:
        """Returns when no task is left, done or given up; raises nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self._done >= self.given)

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._failure is None:
                try:
                    task()
                except BaseException as error:  # noqa: BLE001 - raised again in the first thread
                    self._failure = error
            with self._changed:
                self._done += 1
                self._changed.notify_all()


class Slots:
    """Pieces of memory in turn, each free again when the task that was given after it is done."""

    def __init__(self, hand: Hand, count: int) -> None:
        self._hand = hand
        self._busy = [0] * count
        self._next = 0

    def take(self) -> int:
        """The number of a slot that no task looks at any more."""
        slot = self._next
        self._hand.wait(self._busy[slot])
        self._next = (slot + 1) % len(self._busy)
        return slot

    def given(self, slot: int) -> None:
        """The last task given looks at `slot`."""
        self._busy[slot] = self._hand.given
