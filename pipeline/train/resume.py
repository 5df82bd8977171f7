"""Resume points of a round in training: all that the next step depends on, each in one file.

Written to a temporary name and renamed, so that a full disk or a kill leaves the ones before. The
newest that is whole counts.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.artefacts.files import atomic
from pipeline.errors import RequestError, UrushiError
from pipeline.train.plan import RoundTraining

_PATTERN = "state-*.pt"
_DIGEST = 64
"""Hexadecimal digits of a BLAKE3."""
_DAMAGE = (
    *(OSError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError),
    *(zipfile.BadZipFile, pickle.UnpicklingError),
)
"""What reading a damaged file raises, or one of another version: zipfile, torch and pickle have no
one word."""


@dataclass(frozen=True)
class State:
    """After `step` steps. Randomness is counted, so no generator's state is needed."""

    fingerprint: str
    settings: Mapping[str, Any]
    """As in RoundTraining."""
    step: int
    parameters: Mapping[str, Tensor]
    """What is trained, by name, on the CPU, and where it began if that is of the weights."""
    order: tuple[str, ...]
    """Their names as the optimizer counts them."""
    optimizer: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    scaler: Mapping[str, Any]
    ema: Mapping[str, Any]
    """Empty where the recipe asks for none."""
    scaled: Mapping[str, int]
    """Layers that the largest norm scaled back, and in how many steps."""
    losses: tuple[float, ...]
    """Of every step so far."""
    seconds: float
    """Spent in training so far, interruptions left out."""
    forced: tuple[str, ...] = ()
    """What was changed on the way by --force, a sentence each time."""


def save_state(folder: Path, state: State, keep: int) -> None:
    """Adds a resume point, then removes all but the last `keep` up to it.

    Later ones, which could not be read, are of steps that are done again.

    Raises:
        DiskFullError: no room; the points before stay.
    """
    path = folder / f"state-{state.step:08d}.pt"
    with atomic(path) as temporary, _plainly(), open(temporary, "wb") as file:
        torch.save({**vars(state), "losses": list(state.losses)}, file)
    points = _points(folder)
    here = points.index(path)
    for old in (*points[:here], *points[here + keep :]):
        old.unlink(missing_ok=True)


@contextmanager
def _plainly() -> Iterator[None]:
    """Says what the disk said, over which torch's writer puts an error of its own."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def has_state(folder: Path) -> bool:
    """Whether `folder` holds a resume point, whole or not."""
    return bool(_points(folder))


def load_state(folder: Path, say: Callable[[str], None]) -> State | None:
    """The newest resume point in `folder` that is whole; None where there is none at all.

    Args:
        say: told which are passed over, and why.

    Raises:
        UrushiError: there are some, and none is whole.
    """
    points = _points(folder)
    for path in points:
        try:
            return _read(path)
        except _DAMAGE as error:
            say(f"{path} is damaged ({_short(error)}); the resume point before it is looked at.")
    if points:
        raise UrushiError(
            f"No resume point in {folder} is whole. Delete {_PATTERN} there to train the round "
            "anew; where other files are damaged too, look at the disk first."
        )
    return None


def _read(path: Path) -> State:
    """Raises one of _DAMAGE. torch does not look at the checksums that it writes: zeros or flipped
    bits among the weights would be gone on with."""
    with zipfile.ZipFile(path) as archive:
        wrong = archive.testzip()
    if wrong is not None:
        raise zipfile.BadZipFile(f"wrong checksum of {wrong}")
    table = torch.load(path, map_location="cpu", weights_only=True)
    return State(**{**table, "losses": tuple(table["losses"])})


def _short(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:100] if lines else type(error).__name__


def clear_states(folder: Path) -> None:
    """Removes every resume point: the round is trained."""
    for path in _points(folder):
        path.unlink(missing_ok=True)


def _points(folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob(_PATTERN), reverse=True)


def take(state: State, parameters: Mapping[str, nn.Parameter], folder: Path) -> None:
    """Puts a resume point's values into `parameters`.

    Raises:
        RequestError: its LoRA has other layers, ranks or beginnings.
    """
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    if {name: tuple(value.shape) for name, value in state.parameters.items()} != shapes:
        raise RequestError(_of_another(folder))
    for name, parameter in parameters.items():
        parameter.data.copy_(state.parameters[name])


def _of_another(folder: Path) -> str:
    return (
        f"The resume point in {folder} is of a LoRA with other layers or ranks, or of another "
        "start, which cannot be gone on with. Put [lora] and [rounds].start back, or delete "
        f"{folder} to train the round anew."
    )


def require_same(state: State, training: RoundTraining) -> tuple[str, ...]:
    """What differs between a resume point's settings and the asked ones; () where nothing does.

    Raises:
        RequestError: something differs, and the training is not to be forced or cannot be.
    """
    if state.fingerprint == training.fingerprint:
        return ()
    changed = differences(state.settings, training.settings)
    if not training.force:
        raise RequestError(
            f"Round {training.round} is trained up to step {state.step} under other settings: "
            f"{'; '.join(changed)}. Put them back; or go on from there all the same with --force "
            "(the LoRA is then no recipe's, and its receipt says so); or delete "
            f"{training.folder} to train the round anew."
        )
    starts = {settings.get("start") for settings in (state.settings, training.settings)}
    if len(starts) > 1 and "carried" in starts:
        # What it was given of the LoRA before is in its factors, and taken out of the weights.
        raise RequestError(_of_another(training.folder))
    return changed


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Every key whose value differs, spelled "lora.rank 8 -> 16"; of digests only the name."""
    old, new = dict(_flat(before)), dict(_flat(after))
    said = []
    for key in sorted(old.keys() | new.keys()):
        values = [old.get(key), new.get(key)]
        if values[0] == values[1]:
            continue
        is_digest = any(isinstance(value, str) and len(value) == _DIGEST for value in values)
        said.append(f"{key} changed" if is_digest else f"{key} {values[0]} -> {values[1]}")
    return tuple(said)


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
