"""posts.sqlite opened: one connection, its transactions, SQLite's complaints as our errors."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.artefacts.files import translated
from pipeline.download.schema import connect
from pipeline.errors import UrushiError


class Database:
    """An open posts.sqlite. Used by one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.errors():
            self.db = connect(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.db.close()

    @contextmanager
    def transaction(self, *, temporary: bool = False) -> Iterator[sqlite3.Connection]:
        """All of what is written inside, or nothing.

        `temporary`: temporary tables alone are written, for which no other process need wait.
        """
        with self.errors():
            self.db.execute("BEGIN" if temporary else "BEGIN IMMEDIATE")
            try:
                yield self.db
            except BaseException:
                if self.db.in_transaction:  # A full disk has already ended it.
                    self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """SQLite's complaints about the disk and the file as ours; those about SQL are our bugs."""
        try:
            with translated(self.path):
                try:
                    yield
                except sqlite3.DatabaseError as error:
                    code = DISK_ERRORS.get(_code(error))
                    if code is None:
                        raise
                    raise OSError(code, str(error)) from error
        except sqlite3.DatabaseError as error:
            if _code(error) not in FILE_ERRORS:
                raise
            raise UrushiError(
                f"{self.path} cannot be used: {error}. If it is damaged, move it away: pictures "
                "stay and are taken up again, posts are asked for anew."
            ) from error


def _code(error: sqlite3.Error) -> int:
    """The primary result code; 0 for errors of the module itself."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


FILE_ERRORS = (
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_BUSY,
)
DISK_ERRORS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
    sqlite3.SQLITE_PERM: errno.EACCES,
}
