"""Writes .safetensors and folders whole or not at all: a hidden name beside, fsync, rename, fsync.

A kill at any moment leaves the old output or the new one, and at most a `.NAME.PID.part` beside it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from merge.container import BITS, Entry
from merge.errors import DISK_FULL, MergeError, writing

ALIGNMENT = 8
"""Bytes: the buffer starts on a multiple of it, so that any dtype can be mapped in place."""


@dataclass(frozen=True)
class Planned:
    """A file laid out before its first byte is written: its header's bytes and tensors in order."""

    prefix: bytes
    entries: tuple[Entry, ...]
    """In the order of their bytes."""

    @property
    def size(self) -> int:
        return len(self.prefix) + sum(entry.size for entry in self.entries)


def plan(
    entries: Sequence[Entry], metadata: Mapping[str, str], keep_places: bool = False
) -> Planned:
    """Lays tensors out, the header in the order given.

    `keep_places`: the bytes go where the entries' own offsets say. Otherwise wide dtypes go first
    and the order given decides within a dtype, so that every tensor is aligned.
    """
    if keep_places:
        ordered = sorted(entries, key=lambda e: (e.begin, e.end))
    else:
        ordered = []
        position = 0
        for entry in sorted(entries, key=lambda e: -BITS[e.dtype]):
            ordered.append(
                Entry(entry.name, entry.dtype, entry.shape, position, position + entry.size)
            )
            position += entry.size
    placed = {entry.name: entry for entry in ordered}
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for entry in entries:
        place = placed[entry.name]
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [place.begin, place.end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return Planned(len(text).to_bytes(8, "little") + text, tuple(ordered))


def write_tensors(
    path: Path, planned: Planned, content: Callable[[Entry], Iterable[bytearray]]
) -> None:
    """Writes a laid-out file, tensor by tensor, and fsyncs it. `path` is a temporary one."""
    with open(path, "wb") as file:
        file.write(planned.prefix)
        for entry in planned.entries:
            written = sum(file.write(piece) for piece in content(entry))
            if written != entry.size:
                raise AssertionError(f"{entry.name}: {written} bytes for {entry.size}")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(out: Path, size: int, folder: bool) -> Iterator[Path]:
    """Yields a temporary path beside `out`, which becomes `out` if nothing was raised.

    `size`: bytes that will be needed, checked before anything is written. `folder`: whether the
    output is one. The caller fsyncs.
    An existing folder is swapped; between its two renames a kill leaves neither, never a mixture.

    Raises:
        MergeError: no room (3), no permission (2), `out` is a folder that is no pipeline (2).
    """
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    if out.is_dir() and not (folder and (out / "model_index.json").is_file()):
        raise MergeError(f"{out} is a folder, and not an earlier output. Choose another output.")
    if folder and out.is_file():
        raise MergeError(f"{out} is a file, but a folder is to be written. Choose another output.")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < size:
            raise MergeError(
                f"{out} needs {size:,} bytes and the disk has {free:,} left. Nothing was written: "
                "free some space and run the same command again.",
                DISK_FULL,
            )
        try:
            _remove(temporary)
            yield temporary
            _swap(temporary, out)
        except BaseException:
            _remove(temporary)
            raise
        sync_folder(out.parent)


def _swap(temporary: Path, out: Path) -> None:
    if not temporary.is_dir() and not out.is_dir():
        temporary.replace(out)
        return
    aside = out.with_name(f".{out.name}.{os.getpid()}.old.part")
    _remove(aside)
    if out.exists():
        out.rename(aside)
    temporary.rename(out)
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copies and fsyncs one file; a link is followed, as model caches are made of links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    with open(target, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
