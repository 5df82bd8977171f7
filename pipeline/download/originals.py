"""The files that a search wants, each brought to an end: verified on disk, or a state and a reason.

A few at a time, at the site's pace. What failed for the file's sake is a row; what failed for the
site's sake (nothing answers, file after file fails) pauses the run, and stops it in the end.
"""

import asyncio
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import aiohttp

from pipeline.artefacts.workspace import DatasetFolder, original_name
from pipeline.download.breaker import Breaker
from pipeline.download.choice import Wanted
from pipeline.download.delivery import AskAgain, Delivery, End, Notes
from pipeline.download.examine import Examiner
from pipeline.download.fetch import adopt, open_session
from pipeline.download.header import EXTENSIONS, Picture
from pipeline.download.looking import Looking
from pipeline.download.parts import part_of
from pipeline.download.patience import Patience
from pipeline.download.placing import Landed
from pipeline.download.sites import Site
from pipeline.download.store import Store
from pipeline.errors import DiskFullError
from pipeline.progress import Bar
from pipeline.recipe.dataset import Download

MIB = 1024 * 1024
ROOM = 1.05
"""Of the bytes that are still to come, free space that must be there."""

LANDING = 192
"""Files that may be on their way to the disk beside those that are received: what comes together is
brought to the disk together."""
TOGETHER = 128
SECONDS_APART = 0.5
"""Files that landed are noted by so many at once, or after so long."""


@dataclass(frozen=True)
class Todo:
    """What is still to come."""

    files: int
    bytes: int
    """As posts state them."""
    unstated: int
    """Files of which no size is stated."""


class Originals:
    """Settles wanted files. One per run."""

    def __init__(
        self,
        store: Store,
        folder: DatasetFolder,
        site: Site,
        asked: Download,
        patience: Patience,
        breaker: Breaker,
        ask_again: AskAgain,
        say: Callable[[str], None],
        rng: random.Random,
    ) -> None:
        self._store = store
        self._folder = folder
        self._site = site
        self._asked = asked
        self._patience = patience
        notes = Notes(store.attempted, store.save_post, store.mark_missing)
        self._delivery = Delivery(
            folder, site, asked, patience, breaker, ask_again, notes, say, rng
        )
        self._root = str(folder.root)
        self._tried: set[str] = set()
        self._filled: set[str] = set()
        """Folders that an earlier run made: files that no one noted can lie there alone."""
        self._landed: list[tuple[str, Picture, int]] = []
        self._noted = time.monotonic()

    def todo(self, wanted: Iterable[Wanted]) -> Todo:
        """How much of `wanted` has not come to an end.

        Files that failed in an earlier run, and files that were here and are no more, count.
        """
        files = size_bytes = unstated = 0
        for item in wanted:
            if self._is_open(item):
                files += 1
                if not self._on_disk(item.md5):
                    size_bytes += item.bytes or 0
                    unstated += item.bytes is None
        return Todo(files, size_bytes, unstated)

    def settle(
        self, wanted: Iterable[Wanted], todo: Todo, bar: Bar, examiner: Examiner | None = None
    ) -> None:
        """Brings what is open of `wanted`, which is `todo`, to an end.

        Each file is fetched, or taken up where it lies there already. With an `examiner`, what
        comes is looked at meanwhile: at a polite pace that takes no time of its own.

        Raises:
            UrushiError: the site is down, or keeps failing.
            DiskFullError: there is no room, or will not be.
            RequestError: the workspace cannot be written to.
        """
        self._check_room(todo)
        self._filled = set(glob("*/*", root_dir=self._folder.originals))
        asyncio.run(self._settle_all(wanted, bar, examiner))

    async def _settle_all(
        self, wanted: Iterable[Wanted], bar: Bar, examiner: Examiner | None
    ) -> None:
        looking = None if examiner is None else Looking(examiner)
        queue = (item for item in wanted if self._is_open(item))
        failures = received = 0
        began = time.monotonic()

        async def work(session: aiohttp.ClientSession) -> None:
            nonlocal failures, received
            for item in queue:
                end = await self._one(session, item)
                self._note(item, end, looking)
                if looking is not None and end.landed is not None:
                    await looking.begin(item.md5, end.landed.picture.extension)
                failures += end.state != "have"
                received += 0 if end.landed is None else end.landed.bytes
                rate = received / MIB / max(time.monotonic() - began, 1e-3)
                failed = f", {failures} not to be had" if failures else ""
                bar.note(f"{rate:.1f} MiB/s{failed}")
                bar.advance()

        connections = self._asked.connections
        async with open_session(self._site, self._patience, connections) as session:
            # More than there are connections: while some wait for the disk, others receive.
            workers = [asyncio.create_task(work(session)) for _ in range(connections + LANDING)]
            try:
                await asyncio.gather(*workers)
                if looking is not None:
                    await looking.finish()
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                self._delivery.close()
                if looking is not None:
                    looking.close()
                self._write_down(looking)

    def _note(self, item: Wanted, end: End, looking: Looking | None) -> None:
        if end.landed is not None:
            self._landed.append((item.md5, end.landed.picture, end.landed.bytes))
            if len(self._landed) >= TOGETHER or time.monotonic() - self._noted >= SECONDS_APART:
                self._write_down(looking)
            return
        if end.state == "failed":
            self._tried.add(item.md5)
        else:
            part_of(self._folder, item.md5).discard()  # No one will ask for the rest.
        self._store.settle(item.md5, end.state, end.reason)

    def _write_down(self, looking: Looking | None) -> None:
        """Notes the files that have landed, and then what was seen in them.

        Those of a killed run are found where they lie.
        """
        landed, self._landed = self._landed, []
        self._noted = time.monotonic()
        self._store.have_all(landed)
        if looking is not None:
            looking.write_down()

    async def _one(self, session: aiohttp.ClientSession, item: Wanted) -> End:
        """One file to its end."""
        if f"{item.md5[:2]}/{item.md5[2:4]}" in self._filled and self._on_disk(item.md5):
            landed = await asyncio.to_thread(self._take_up, item.md5)
            if landed is not None:
                return End("have", landed=landed)
        return await self._delivery.deliver(session, item)

    def _is_open(self, item: Wanted) -> bool:
        if item.state == "have":
            path = f"{self._root}/{original_name(item.md5, item.extension or '')}"
            try:
                return os.stat(path).st_size != item.bytes_on_disk
            except FileNotFoundError:
                return True
        again = item.state == "failed" and item.md5 not in self._tried
        return item.state == "planned" or again

    def _on_disk(self, md5: str) -> list[Path]:
        """Files under the names that this one could have."""
        first = f"{self._root}/{original_name(md5, '')}"
        if not os.path.isdir(os.path.dirname(first)):  # This is asked of every file there is.
            return []
        paths = (self._folder.original(md5, extension) for extension in EXTENSIONS)
        return [path for path in paths if os.path.isfile(path)]

    def _take_up(self, md5: str) -> Landed | None:
        """The file, if it lies whole in its place though no one noted it."""
        adopted = (adopt(path, md5, self._asked.most_pixels) for path in self._on_disk(md5))
        return next((landed for landed in adopted if landed is not None), None)

    def _check_room(self, todo: Todo) -> None:
        needed = ROOM * todo.bytes
        free = shutil.disk_usage(self._folder.root).free
        if needed > free:
            raise DiskFullError(
                f"{todo.files} pictures need {needed / 1e9:.1f} GB, and the disk of "
                f"{self._folder.root} has {free / 1e9:.1f} GB left. Free some space, lower "
                "[download].limit, or choose another --workspace."
            )
