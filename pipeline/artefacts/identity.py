"""What a file or a value is: BLAKE3 of bytes, remembered by path, size, inode and mtime.

sha256 runs at a quarter of a gigabyte a second on one core, half a minute for an SDXL file; it is
used only where a format wants it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from pipeline.artefacts.files import read_json, write_json
from pipeline.errors import UrushiError


def fingerprint(**parts: Any) -> str:
    """20 hexadecimal digits that change when any part does. Parts are JSON values."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return blake3(canonical.encode()).hexdigest()[:20]


def digest_bytes(content: bytes) -> str:
    """BLAKE3 in hexadecimal."""
    return blake3(content).hexdigest()


def digest_file(path: Path) -> str:
    """BLAKE3 of a file's bytes, in hexadecimal."""
    hasher = blake3(max_threads=blake3.AUTO)
    hasher.update_mmap(path)
    return hasher.hexdigest()


class Identities:
    """Digests of large files, remembered in one JSON file of the workspace.

    A remembered digest holds while path, size, inode and mtime stay the same.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory

    def of(self, path: Path) -> str:
        """BLAKE3 of `path`: a file, or all files of a folder with their names."""
        path = path.resolve()
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())
            return fingerprint(files={str(p.relative_to(path)): self._of_file(p) for p in files})
        return self._of_file(path)

    def of_all(self, files: Sequence[Path]) -> list[str]:
        """BLAKE3 of each of many files; what is remembered is read once and written once."""
        known = self._load()
        found = []
        changed = False
        for path in files:
            mark, key = mark_of(path), str(path)
            if known.get(key, [None])[0] != mark:
                known[key], changed = [mark, digest_file(path)], True
            found.append(str(known[key][1]))
        if changed:
            write_json(self._memory, known)
        return found

    def remembered(
        self, what: str, files: Sequence[Path], compute: Callable[[], dict[str, str]]
    ) -> dict[str, str]:
        """Digests that `compute` makes of `files`, kept under the name `what` until one changes."""
        mark = [[str(path), *mark_of(path)] for path in files]
        known = self.recall(what, mark)
        if known is not None:
            return dict(known)
        digests = compute()
        self.keep(what, mark, digests)
        return digests

    def recall(self, what: str, mark: list[Any]) -> Any:
        """What is remembered of `what`, while its mark is this one; None otherwise."""
        known = self._load().get(what)
        return known[1] if known is not None and known[0] == mark else None

    def keep(self, what: str, mark: list[Any], value: Any) -> None:
        """Remembers a digest that was made somewhere else: `mark` is from before it was made."""
        remembered = self._load()
        remembered[what] = [mark, value]
        write_json(self._memory, remembered)

    def _of_file(self, path: Path) -> str:
        mark = mark_of(path)
        known = self.recall(str(path), mark)
        if known is not None:
            return str(known)
        digest = digest_file(path)
        self.keep(str(path), mark, digest)
        return digest

    def _load(self) -> dict[str, Any]:
        if not self._memory.exists():
            return {}
        try:
            known = read_json(self._memory)
        except UrushiError:
            return {}  # Only a memory: what is forgotten is computed again.
        if not isinstance(known, dict):
            return {}
        return {k: v for k, v in known.items() if isinstance(v, list) and len(v) == 2}


def mark_of(path: Path) -> list[Any]:
    """What tells that a file is still the same: size in bytes, inode, mtime in nanoseconds."""
    stat = path.stat()
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns]
