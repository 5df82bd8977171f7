"""Atomic files: a temporary name in the same folder, fsync, rename, fsync of the folder.

A reader sees the old file, or the whole new one, never a part, after SIGKILL and power loss alike.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import DiskFullError, RequestError, UrushiError

TEMPORARY = ".part"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, renamed to it at the end if no exception was raised.

    Raises:
        DiskFullError: no room; the temporary file is removed, an older `path` stays.
        RequestError: the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write `path` into errors of ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"No room left on the disk while writing {path}. "
                "Nothing finished is lost: free some space and run the same command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise RequestError(
                f"{path} cannot be written: {error.strerror}. "
                "Choose another --workspace, or give yourself the right to write there."
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise RequestError(
                f"{path} cannot be written: there is a file where its folder should be. "
                "Choose another --workspace, or move that file away."
            ) from error
        raise


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Writes a UTF-8 file whole or not at all."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes indented JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in `path`.

    Raises:
        UrushiError: it is not JSON; the file is named, because someone or something edited it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UrushiError(
            f"{path} is damaged ({error}). Delete it: what it proves will be made again."
        ) from None


def sweep(folder: Path) -> None:
    """Removes temporary files that a killed process left in `folder` and below. Hold its lock."""
    if folder.is_dir():
        for leftover in folder.rglob(f".*{TEMPORARY}"):
            if not _is_being_written(leftover):
                leftover.unlink(missing_ok=True)


def _is_being_written(temporary: Path) -> bool:
    """Whether another living process is its writer: one that writes without this folder's lock."""
    number = temporary.name.removesuffix(TEMPORARY).rpartition(".")[2]
    if not number.isdecimal() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
