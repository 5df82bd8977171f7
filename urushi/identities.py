"""Hashes of inputs for merge/, which keeps no memory of its own: the workspace remembers them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artefacts.identity import mark_of
from pipeline.artefacts.workspace import Workspace
from pipeline.errors import UrushiError


class Remembered(Mapping[Path, str]):
    """BLAKE3 by path, of those of `paths` that were hashed before and are still the same.

    known = Remembered(workspace, paths)
    report = merge(..., identities=known)
    known.keep({base: report.base, ...})
    """

    def __init__(self, workspace: Path, paths: Sequence[Path]) -> None:
        self._memory = Workspace(workspace.resolve()).identities
        self._marks = {path: _mark(path) for path in paths if path.exists()}
        self._known: dict[Path, str] = {}
        for path, mark in self._marks.items():
            known = self._memory.recall(_name(path), mark)
            if known is not None:
                self._known[path] = str(known)

    def keep(self, digests: Mapping[Path, str]) -> None:
        """Remembers what was hashed since, of files that did not change meanwhile."""
        for path, digest in digests.items():
            mark = self._marks.get(path)
            if path in self._known or mark is None:
                continue
            try:
                if _mark(path) == mark:
                    self._memory.keep(_name(path), mark, digest)
            except (OSError, UrushiError):
                return  # A workspace that cannot be written only costs time.

    def __getitem__(self, path: Path) -> str:
        return self._known[path]

    def __iter__(self) -> Iterator[Path]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def _name(path: Path) -> str:
    """A file is remembered by its path alone, as all rooms do. Of a folder merge/ has a hash of
    its own kind."""
    return f"merge:{path.resolve()}" if path.is_dir() else str(path.resolve())


def _mark(path: Path) -> list[Any]:
    if not path.is_dir():
        return mark_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [[str(file.relative_to(path)), *mark_of(file)] for file in files]
