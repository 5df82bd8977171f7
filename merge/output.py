"""Writes .safetensors and folders whole or not at all: a hidden name beside, fsync, rename, fsync.

A kill at any moment leaves the old output or the new one, and at most a `.NAME.N.PID.part` beside
it, which the next merge to that name removes.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path

from merge.beside import claimed, swap, sweep
from merge.container import BITS, Entry, Reader
from merge.errors import DISK_FULL, FAILED, MergeError, writing
from merge.hand import Hand

ALIGNMENT = 8
"""Bytes: the buffer starts on a multiple of it, so that any dtype can be mapped in place."""

RELEASE = 64 * 1024 * 1024
"""Bytes after which the disk is asked to begin with them."""

PAGE = 4096
"""Bytes: file systems that share blocks between files share whole ones at such places."""

PIECE = 1024 * 1024
"""Bytes copied at once where the kernel cannot."""

CANNOT_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
"""What says that the kernel cannot copy between these two files; bytes are then written by us."""


@dataclass(frozen=True)
class Span:
    """Bytes of a tensor in another file, to be copied unchanged."""

    reader: Reader
    entry: Entry
    offset: int
    """In the tensor."""
    count: int

    @property
    def begin(self) -> int:
        """In the file."""
        return self.reader.header.start + self.entry.begin + self.offset


Content = bytes | bytearray | memoryview | Span


@dataclass(frozen=True)
class Planned:
    """A file laid out before its first byte is written: its header's bytes and tensors in order."""

    prefix: bytes
    entries: tuple[Entry, ...]
    """In the order of their bytes."""

    @property
    def size(self) -> int:
        return len(self.prefix) + sum(entry.size for entry in self.entries)


def plan(entries: Sequence[Entry], metadata: Mapping[str, str], like: int | None = None) -> Planned:
    """Lays tensors out, the header in the order given.

    `like`: the bytes go where the entries' own offsets say, behind a header as long as lets blocks
    be shared with a file whose buffer starts at `like`. Otherwise wide dtypes go first and the
    order given decides within a dtype, so that every tensor is aligned.
    """
    if like is not None:
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
    if like is not None and like % ALIGNMENT == 0:
        text += b" " * ((like - 8 - len(text)) % PAGE)
    else:
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return Planned(len(text).to_bytes(8, "little") + text, tuple(ordered))


def write_tensors(
    path: Path,
    planned: Planned,
    content: Callable[[Entry], Iterable[Content]],
    hand: Hand | None = None,
) -> None:
    """Writes a laid-out file, tensor by tensor, and fsyncs it. `path` is a temporary one.

    `hand`: who writes. A piece then belongs to it until its next task is done; without one, it is
    written before the next piece is asked for.
    """
    with open(path, "wb", buffering=0) as file:
        writer = _Writer(file)
        try:
            _pass(hand, partial(writer.write, planned.prefix))
            for entry in planned.entries:
                size = 0
                for piece in content(entry):
                    size += piece.count if isinstance(piece, Span) else len(piece)
                    _pass(hand, partial(writer.write, piece))
                if size != entry.size:
                    raise AssertionError(f"{entry.name}: {size} of {entry.size}")
            _pass(hand, writer.flush)
        finally:
            if hand is not None:
                hand.settle()
        os.fsync(file.fileno())


def _pass(hand: Hand | None, task: Callable[[], None]) -> None:
    if hand is None:
        task()
    else:
        hand.do(task)


def rewrite_prefix(path: Path, planned: Planned) -> None:
    """Puts a header of the same length in the place of the one written, and fsyncs."""
    with open(path, "r+b", buffering=0) as file:
        length = 8 + int.from_bytes(file.read(8), "little")
        if length != len(planned.prefix):
            raise AssertionError(f"{path}: a header of {len(planned.prefix)} bytes for {length}")
        file.seek(0)
        _write_all(file, planned.prefix)
        os.fsync(file.fileno())


class _Writer:
    """Writes pieces in order; spans that follow one another in their file become one copy."""

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._position = 0
        self._released = 0
        self._reader: Reader | None = None
        self._begin = 0
        self._count = 0

    def write(self, piece: Content) -> None:
        if not isinstance(piece, Span):
            self.flush()
            _write_all(self._file, piece)
            self._written(len(piece))
            return
        if piece.reader is not self._reader or piece.begin != self._begin + self._count:
            self.flush()
            self._reader, self._begin = piece.reader, piece.begin
        self._count += piece.count

    def flush(self) -> None:
        """Copies the spans that wait."""
        reader, begin, left = self._reader, self._begin, self._count
        self._reader, self._count = None, 0
        if reader is None:
            return
        while left:
            done = _copy_in_kernel(reader, begin, left, self._file)
            done = done or _copy_by_hand(reader, begin, left, self._file)
            self._written(done)
            begin, left = begin + done, left - done

    def _written(self, count: int) -> None:
        """Has the disk begin, and lets go of what it has.

        Left to itself the kernel waits until gigabytes are dirty, the last fsync waits for all of
        them, and every new page costs the search for an old one: three times the CPU seconds.
        """
        self._position += count
        if self._position - self._released >= RELEASE:
            self._released = self._position
            os.posix_fadvise(self._file.fileno(), 0, self._position, os.POSIX_FADV_DONTNEED)


def _write_all(file: FileIO, content: bytes | bytearray | memoryview) -> None:
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def _copy_in_kernel(reader: Reader, begin: int, count: int, file: FileIO) -> int:
    """Bytes copied from `begin` on; 0 where the kernel cannot, or says that nothing is there."""
    try:
        return os.copy_file_range(reader.fileno(), file.fileno(), count, begin)
    except OSError as error:
        if error.errno not in CANNOT_COPY:
            raise
        return 0


def _copy_by_hand(reader: Reader, begin: int, count: int, file: FileIO) -> int:
    """Bytes copied from `begin` on, a piece of them at most."""
    piece = os.pread(reader.fileno(), min(count, PIECE), begin)
    if not piece:
        raise MergeError(f"{reader.path} became shorter while it was read. Start again.", FAILED)
    _write_all(file, piece)
    return len(piece)


@contextmanager
def replacing(out: Path, size: int, folder: bool) -> Iterator[Path]:
    """Yields a temporary path beside `out`, which becomes `out` if nothing was raised.

    `size`: bytes that will be needed, checked before anything is written. `folder`: whether the
    output is one. The temporary one is there, and empty; the caller fsyncs what it writes.
    An existing output is replaced in one step, a folder by exchanging the names (`beside.swap`).

    Raises:
        MergeError: no room (3), no permission (2), `out` is a folder that is no pipeline (2).
    """
    if out.is_dir() and not (folder and (out / "model_index.json").is_file()):
        raise MergeError(f"{out} is a folder, and not an earlier output. Choose another output.")
    if folder and out.is_file():
        raise MergeError(f"{out} is a file, but a folder is to be written. Choose another output.")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out)
        free = shutil.disk_usage(out.parent).free
        if free < size:
            raise MergeError(
                f"{out} needs {size:,} bytes and the disk has {free:,} left. Nothing was written: "
                "free some space and run the same command again.",
                DISK_FULL,
            )
        with claimed(out, folder) as temporary:
            yield temporary
            swap(temporary, out)
            sync_folder(out.parent)


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
