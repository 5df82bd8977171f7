"""What a file is, whatever its name: BLAKE3 of its bytes; sha256 would take ten times as long."""

import os
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from merge.errors import FAILED, MergeError

PIECE = 256 * 1024
"""Bytes read at once: few enough to stay in a core's cache until they are hashed."""


def identity(
    path: Path, known: Mapping[Path, str] | None = None, files: Mapping[Path, str] | None = None
) -> str:
    """BLAKE3 in hexadecimal of a file, or of a folder's files and their names.

    `known`: identities that the caller remembers, by path as given or resolved. `files`: those of
    files in the folder.

    Raises:
        MergeError: the file cannot be read.
    """
    remembered = recall(path, known)
    if remembered is not None:
        return remembered
    if not path.is_dir():
        return (files or {}).get(path) or Hasher(path).hexdigest()
    # followlinks: a model cache's folders are links.
    found = sorted(
        Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names
    )
    lines = []
    for file in found:
        digest = (files or {}).get(file) or Hasher(file).hexdigest()
        lines.append(f"{file.relative_to(path).as_posix()} {digest}\n")
    return blake3("".join(lines).encode()).hexdigest()


def recall(path: Path, known: Mapping[Path, str] | None) -> str | None:
    """What the caller remembers of `path`."""
    for name in (path, path.resolve()):
        if known and name in known:
            return known[name]
    return None


class Hasher:
    """Hashes a file from the bytes that pass by while it is read for something else.

    What is not seen in order is read by itself, so that the hash is always the file's; a reader
    that goes from the start to the end costs no second pass.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = blake3()
        self._done = 0

    def saw(self, position: int, content: memoryview) -> None:
        """The file holds `content` at `position` (bytes)."""
        if position > self._done:
            self._read(position)
        if position <= self._done < position + len(content):
            self._hash.update(content[self._done - position :])
            self._done = position + len(content)

    def hexdigest(self) -> str:
        """Of the whole file. Raises MergeError: it cannot be read."""
        self._read(None)
        return self._hash.hexdigest()

    def _read(self, end: int | None) -> None:
        """Hashes from where it stands to `end`, or to the file's end."""
        view = memoryview(bytearray(PIECE))
        try:
            with open(self._path, "rb", buffering=0) as file:
                file.seek(self._done)
                while end is None or self._done < end:
                    room = PIECE if end is None else min(PIECE, end - self._done)
                    got = file.readinto(view[:room])
                    if not got:
                        break
                    self._hash.update(view[:got])
                    self._done += got
        except OSError as error:
            raise MergeError(
                f"{self._path} cannot be read: {error.strerror}. Check the path."
            ) from error
        if end is not None and self._done < end:
            raise MergeError(f"{self._path} became shorter while it was read. Start again.", FAILED)
