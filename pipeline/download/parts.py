"""What has come of a file so far: parts/MD5.part, and beside it what names the server's copy.

A part is kept when the transfer breaks off, when the program is stopped and when it is killed. Its
hash is not: the bytes are read again, which is quicker than anything else about a download.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.md5 import Bytes, Md5, new_md5

SUFFIX = ".part"
VALIDATOR = ".etag"
WORTH_RESUMING = 256 * 1024
"""Bytes. Less is sooner fetched again than asked about."""


@dataclass
class Part:
    """One file on its way. Used by one transfer at a time."""

    path: Path
    length: int = 0
    """Bytes that are there."""
    md5: Md5 = field(default_factory=Md5)
    """Of those that are in the file. See `digest`."""
    _handle: BinaryIO | None = None
    _held: list[Bytes] = field(default_factory=list)
    _hashed: int = 0
    """Of the chunks that are held."""
    _name: str | None = None
    _named: bool = False
    """Whether there may be a file that names the server's copy."""

    @property
    def _validator(self) -> Path:
        return self.path.with_suffix(VALIDATOR)

    def resume(self) -> None:
        """Takes up what there is."""
        self._named = True  # As far as one knows.
        with open(self.path, "rb") as handle:
            self.md5 = Md5(hashlib.file_digest(handle, new_md5))
            self.length = handle.tell()

    def question(self) -> dict[str, str]:
        """The headers that ask for the rest; none where it is better to begin anew."""
        if self.length < WORTH_RESUMING:
            return {}
        headers = {"Range": f"bytes={self.length}-"}
        with suppress(FileNotFoundError):
            headers["If-Range"] = self._validator.read_text(encoding="latin-1")
        return headers

    @property
    def is_in_memory(self) -> bool:
        """Whether a kill would take what came of it."""
        return bool(self._held)

    def restart(self, validator: str | None, length: int | None) -> None:
        """Begins at the first byte of the copy that `validator` names, of `length` bytes."""
        self.close()
        if self.length:
            self.length, self.md5 = 0, Md5()
        self._held, self._hashed = [], 0
        self._name = validator if length is None or length > WORTH_RESUMING else None

    def go_on(self) -> None:
        """Goes on behind the last byte."""
        self._handle = open(self.path, "ab", buffering=0)  # noqa: SIM115 - until close().

    def write(self, chunk: Bytes) -> None:
        """Adds bytes. Few are held in memory: making a file can wait for the disk."""
        self.length += len(chunk)
        if self._handle is not None:
            self.md5.follow(chunk)
            _write(self._handle, chunk)
            return
        self._held.append(chunk)
        if self.length >= WORTH_RESUMING:
            self._spill()

    async def digest(self) -> str:
        """The md5 of all that came, as 32 digits."""
        self._hash_held()
        return await self.md5.settle()

    def digest_at_once(self) -> str:
        """The same of a part in memory, or of one of which it is known already."""
        self._hash_held()
        return self.md5.at_once()

    def _hash_held(self) -> None:
        for chunk in self._held[self._hashed :]:
            self.md5.update(chunk)
        self._hashed = len(self._held)

    @property
    def in_memory(self) -> Bytes | None:
        """All of it, where none of it is in the file."""
        if len(self._held) == 1:
            return self._held[0]
        return b"".join(self._held) if self._held else None

    def keep(self) -> None:
        """Puts what is held in memory into the file, which a kill then leaves as it is."""
        try:
            if self._held or not self.length:
                self._spill()
        finally:
            self.close()

    def close(self) -> None:
        """The file stays."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _spill(self) -> None:
        self._hash_held()
        try:
            self._handle = open(self.path, "wb", buffering=0)  # noqa: SIM115 - until close().
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = open(self.path, "wb", buffering=0)  # noqa: SIM115
        held, self._held, self._hashed = self._held, [], 0
        for chunk in held:
            _write(self._handle, chunk)
        if self._name:
            self._named = True
            self._validator.write_text(self._name, encoding="latin-1")
        else:
            self.forget()

    def forget(self) -> None:
        """Removes what named the server's copy."""
        if self._named:
            self._validator.unlink(missing_ok=True)
            self._named = False

    def discard(self) -> None:
        """Removes what there is."""
        self._named = True
        self.close()
        self._held, self._hashed = [], 0
        self.path.unlink(missing_ok=True)
        self.forget()
        self.length, self.md5 = 0, Md5()


def part_of(folder: DatasetFolder, md5: str) -> Part:
    """The part of one file."""
    return Part(folder.parts / f"{md5}{SUFFIX}")


def begun_in(folder: DatasetFolder) -> set[str]:
    """The md5s of which there is a part."""
    return {path.stem for path in folder.parts.glob(f"*{SUFFIX}")}


def _write(handle: BinaryIO, chunk: Bytes) -> None:
    """An unbuffered write may take less than all."""
    view = memoryview(chunk)
    while view:
        view = view[handle.write(view) :]
