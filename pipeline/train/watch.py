"""What a person sees of a training: a line beside the bar, and its trackers' curves."""

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from pipeline.artefacts.files import translated
from pipeline.train.plan import RoundTraining
from pipeline.train.trackers import begun

GIB = 2**30


def peak_gib(device: torch.device) -> float:
    """The most memory that this process has held: of the GPU, on a CPU of the machine. GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


class Watch:
    """One training's curves, open while it runs; a resumed one goes on with them.

    Args:
        step: from which it goes on; curves beyond it are of steps that are done again.
        clock: seconds, rising.

    Raises:
        DiskFullError: no room for a point or a picture; `see` and `show` raise it too.
        RequestError: the folder may not be written, or a tracker is not installed or not begun.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        training: RoundTraining,
        names: tuple[str, ...],
        step: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._accelerator, self._folder, self._clock = accelerator, training.folder, clock
        self._looked, self._shown = clock(), 0
        if not accelerator.is_main_process:
            return
        with translated(self._folder):
            accelerator.trackers = begun(
                names, self._folder, step, training.fingerprint, training.settings
            )

    def see(self, step: int, loss: float, mean: float, rate: float, shown: int) -> str:
        """Adds a point to the curves; returns the words beside the bar.

        Args:
            loss: of the last step; `mean` of the last ones.
            rate: the learning rate.
            shown: pictures that were trained on since the training began or went on.
        """
        now = self._clock()
        pace = (shown - self._shown) / max(1e-9, now - self._looked)
        self._looked, self._shown = now, shown
        memory = peak_gib(self._accelerator.device)
        values: Mapping[str, float] = {
            "loss": loss,
            "loss/mean": mean,
            "learning_rate": rate,
            "pictures_per_second": pace,
            "peak_gib": memory,
        }
        with translated(self._folder):
            self._accelerator.log(dict(values), step=step)
        return (
            f"loss {loss:.4f}, mean {mean:.4f}, LR {rate:.3g}, {pace:.3g} pictures/s, "
            f"{memory:.1f} GiB"
        )

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Seconds inside are none of training's: the pace leaves them out."""
        began = self._clock()
        try:
            yield
        finally:
            self._looked += self._clock() - began

    def show(self, step: int, pictures: Sequence[Image.Image]) -> None:
        """Adds sample pictures, all of one size, to the curves."""
        if pictures:
            stacked = np.stack([np.asarray(picture) for picture in pictures])
            for tracker in self._accelerator.trackers:
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                with translated(self._folder):
                    tracker.log_images({"samples": stacked}, step=step, **layout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for tracker in self._accelerator.trackers:
            # Why a training ends is told, not that its curves then could not be closed.
            with translated(self._folder) if error is None else suppress(OSError):
                tracker.finish()
