"""Atomic files: a temporary name in the same folder, fsync, rename, fsync of the folder.

A reader sees the old file, or the whole new one, never a part, after SIGKILL and power loss alike.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import DiskFullError, RequestError, UrushiError

TEMPORARY = ".part"
OF_THE_MACHINE = (errno.EIO, errno.EMFILE, errno.ENFILE)
"""Errors of a disk that fails and of files that cannot be opened, whatever is in them."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, renamed to it at the end if no exception was raised.

    Raises:
        DiskFullError: no room, or no file may be as large; the temporary file is removed, an older
            `path` stays.
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
        if error.errno == errno.EFBIG:
            raise DiskFullError(
                f"{path} grows larger than a file may be here: FAT32 ends at 4 GB, and `ulimit -f` "
                "can set a bound. Nothing finished is lost: choose another --workspace."
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
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise UrushiError(
                f"{path} cannot be opened: {error.strerror}. Raise the bound (`ulimit -n 1024`) "
                "and run the same command again to go on."
            ) from error
        if error.errno == errno.EIO:
            raise UrushiError(
                f"The disk fails at {path} ({error.strerror}). Look after the disk, and then run "
                "the same command again to go on."
            ) from error
        raise


@contextmanager
def unjudged(path: Path) -> Iterator[None]:
    """Turns what says nothing of the contents of `path` into errors of ours: OF_THE_MACHINE.

    A picture that could not be read for them is none that failed: it is read by the next run.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        with translated(path):
            raise


def files_of(path: Path) -> list[Path]:
    """The file itself, or all files of a folder and below, sorted; none where nothing is there."""
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    return [path] if path.exists() else []


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def share(source: Path, destination: Path) -> None:
    """`source` also under the name `destination`: hard links where the disk can, else copies.

    A folder takes the place of an older one by two renames; a kill between them leaves neither,
    which a receipt, written last, will not vouch for.
    """
    if source.is_dir():
        aside = destination.with_name(f".{destination.name}.{os.getpid()}{TEMPORARY}")
        with translated(destination):
            remove(aside)
            for file in files_of(source):
                share(file, aside / file.relative_to(source))
            remove(destination)
            aside.rename(destination)
            sync_folder(destination.parent)
        return
    if destination.exists() and destination.samefile(source):
        return  # Renaming one link of a file over another would leave both.
    with atomic(destination) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


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
    # os.walk: a dataset of fifty thousand pictures has as many folders, and runs often begin.
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            if name.startswith(".") and name.endswith(TEMPORARY):
                leftover = Path(place, name)
                if not _is_being_written(leftover):
                    remove(leftover)


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
