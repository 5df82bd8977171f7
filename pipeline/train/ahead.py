"""Makes what the next steps need in a thread, while the device computes this one."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import is_dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")

DEPTH = 2
"""How many are made before they are asked for."""


class Ahead(Generic[Made]):
    """What `make` makes of each of `numbers`, in their order.

    Args:
        make: pure; called in one other thread, one at a time.
    """

    def __init__(self, make: Callable[[int], Made], numbers: Iterable[int]) -> None:
        self._make, self._numbers = make, iter(numbers)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._waiting: deque[Future[Made]] = deque()

    def next(self) -> Made:
        """The next one; what `make` raised for it is raised here. StopIteration at the end."""
        while len(self._waiting) <= DEPTH:
            number = next(self._numbers, None)
            if number is None:
                break
            self._waiting.append(self._thread.submit(self._make, number))
        if not self._waiting:
            self._thread.shutdown()
            raise StopIteration
        return self._waiting.popleft().result()


def pinned(record: Made) -> Made:
    """The same record with its tensors in memory that a GPU reads by itself."""
    return _each(record, Tensor.pin_memory)


def moved(record: Made, device: torch.device) -> Made:
    """The same record with its tensors on `device`; from pinned memory without waiting for it."""
    return _each(record, lambda tensor: tensor.to(device, non_blocking=True))


def _each(record: Made, change: Callable[[Tensor], Tensor]) -> Made:
    """A record with its tensors changed, and those of the records in it."""
    changed: Any = record
    if isinstance(record, Tensor):
        changed = change(record)
    elif is_dataclass(record):
        parts = {name: _each(part, change) for name, part in vars(record).items()}
        changed = replace(changed, **parts)
    found: Made = changed
    return found
