"""The files that a search wants, each brought to an end: verified on disk, or a state and a reason.

A few at a time, at the site's pace. What failed for the file's sake is a row; what failed for the
site's sake (nothing answers, file after file fails) stops the run, which can be taken up again.
"""

import asyncio
import random
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.content import EXTENSIONS, MOST_PIXELS, Unusable
from pipeline.download.fetch import (
    Interrupted,
    Landed,
    NotAllowed,
    NotPromised,
    NotShown,
    TooQuick,
    adopt,
    fetch,
    open_session,
)
from pipeline.download.pace import Pace
from pipeline.download.pages import WORTH_SAYING
from pipeline.download.patience import Patience
from pipeline.download.posts import UNAVAILABLE, Post
from pipeline.download.sites import Site
from pipeline.download.store import State, Store, Wanted
from pipeline.download.trouble import RESUMABLE, unreachable
from pipeline.errors import DiskFullError, UrushiError
from pipeline.progress import Bar
from pipeline.recipe.dataset import Download

COPIES = 3
"""Fetched of a file whose md5 is not the stated one, before it is given up."""
FAILURES_IN_A_ROW = 5
"""Files that fail one after the other, before the site is taken to be in trouble."""
ROOM = 1.05
"""Of the bytes that are still to come, free space that must be there."""

AskAgain = Callable[[int], Post | None]
"""Asks the site for one post by id; called from a thread."""


@dataclass(frozen=True)
class End:
    """What became of a file."""

    state: State
    reason: str = ""
    landed: Landed | None = None


class Originals:
    """Settles wanted files. One per run."""

    def __init__(
        self,
        store: Store,
        folder: DatasetFolder,
        site: Site,
        asked: Download,
        patience: Patience,
        ask_again: AskAgain,
        say: Callable[[str], None],
        rng: random.Random,
    ) -> None:
        self._store = store
        self._folder = folder
        self._site = site
        self._asked = asked
        self._patience = patience
        self._ask_again = ask_again
        self._say = say
        self._rng = rng
        self._paces = defaultdict[str, Pace](lambda: Pace(asked.requests_per_second))
        self._failed_in_a_row = 0
        self._tried: set[str] = set()

    def unsettled(self, wanted: Iterable[Wanted]) -> list[Wanted]:
        """Of `wanted`, those that have not come to an end.

        Files that failed in an earlier run, and files that were here and are no more, count.
        """
        return [item for item in wanted if self._is_open(item)]

    def settle(self, todo: Sequence[Wanted], bar: Bar) -> None:
        """Brings all of `todo` to an end: fetched, or taken up where the file lies there already.

        Raises:
            UrushiError: the site is down, or keeps failing.
            DiskFullError: there is no room, or will not be.
            RequestError: the workspace cannot be written to.
        """
        self._check_room(todo)
        asyncio.run(self._settle_all(todo, bar))

    async def _settle_all(self, todo: Sequence[Wanted], bar: Bar) -> None:
        queue = iter(todo)
        failures = 0

        async def work(session: aiohttp.ClientSession) -> None:
            nonlocal failures
            for item in queue:
                end = await self._one(session, item)
                self._note(item, end)
                failures += end.state != "have"
                bar.advance()
                if failures:
                    bar.note(f"{failures} not to be had")

        connections = self._asked.connections
        async with open_session(self._site, self._patience, connections) as session:
            workers = [asyncio.create_task(work(session)) for _ in range(connections)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    def _note(self, item: Wanted, end: End) -> None:
        self._tried.add(item.md5)
        if end.landed is not None:
            self._store.have(item.md5, end.landed.picture, end.landed.bytes)
        else:
            self._store.settle(item.md5, end.state, end.reason)
        self._failed_in_a_row = self._failed_in_a_row + 1 if end.state == "failed" else 0
        if self._failed_in_a_row >= FAILURES_IN_A_ROW:
            raise UrushiError(
                f"{self._failed_in_a_row} files in a row could not be fetched from "
                f"{self._site.address}, the last because of: {end.reason}. Try later. {RESUMABLE}"
            )

    async def _one(self, session: aiohttp.ClientSession, item: Wanted) -> End:
        """One file to its end."""
        if item.size.area > MOST_PIXELS:
            return End("refused", f"{item.size} pixels are more than the {MOST_PIXELS:,} decoded")
        landed = await asyncio.to_thread(self._take_up, item.md5)
        if landed is not None:
            return End("have", landed=landed)
        interruptions = copies = pauses = 0
        asked_again = False
        began = time.monotonic()
        while True:
            url = self._site.file_url(item.file_url or "") if item.file_url else None
            if url is None:
                return End("refused", "the address of its file is none of the site's")
            await self._paces[urlsplit(url).netloc].turn()
            try:
                landed = await fetch(
                    session,
                    self._site,
                    url,
                    item.md5,
                    item.bytes,
                    self._folder,
                    fresh=copies > 0 or asked_again,
                )
                return End("have", landed=landed)
            except Unusable as error:
                return End("bad_content", str(error))
            except NotAllowed as error:
                return End("refused", str(error))
            except NotPromised as error:
                copies += 1
                self._store.attempted(item.md5, str(error))
                if copies >= COPIES:
                    return End("bad_content", str(error))
            except TooQuick as error:
                pauses += 1
                self._pause(url, error, pauses)
            except NotShown as error:
                self._store.attempted(item.md5, str(error))
                if asked_again:
                    return End("hidden" if error.status == 403 else "gone", str(error))
                asked_again = True
                found = await self._look_again(item, error)
                if isinstance(found, End):
                    return found
                item = found
            except Interrupted as error:
                interruptions += 1
                self._store.attempted(item.md5, str(error))
                if interruptions >= self._patience.tries:
                    if error.unreachable:
                        took = time.monotonic() - began
                        raise UrushiError(
                            unreachable(self._site.address, error, interruptions, took)
                        ) from error
                    return End("failed", str(error))
                await asyncio.sleep(self._patience.wait(interruptions, self._rng))

    def _pause(self, url: str, error: TooQuick, times: int) -> None:
        if times >= self._patience.throttled_tries:
            raise UrushiError(
                f"{self._site.address} still says that we are too quick ({error}) after {times} "
                f"pauses. Try later, or with a lower [download].requests_per_second. {RESUMABLE}"
            )
        pause = self._patience.throttled(times, error.retry_after)
        if pause >= WORTH_SAYING:
            self._say(f"{self._site.address} asks us to wait {pause:.0f} s.")
        self._paces[urlsplit(url).netloc].hold(pause)

    async def _look_again(self, item: Wanted, error: NotShown) -> Wanted | End:
        """Asks for the post of a file that is not there: the file to try once more, or its end."""
        post = await asyncio.to_thread(self._ask_again, item.post_id)
        if post is None:
            self._store.mark_missing(item.post_id)
            return End("gone", "its post is gone")
        self._store.save_post(post)
        if post.status in UNAVAILABLE:
            return End("gone", f"its post is {post.status}")
        if post.md5 is None or post.status == "banned":
            return End("hidden", "the site no longer shows its file")
        if post.rating not in self._asked.ratings:
            return End("refused", f"its rating is now {post.rating}")
        if post.md5 != item.md5:
            return End("gone", "its post has another file now")
        return replace(item, file_url=post.file_url, bytes=post.bytes)

    def _is_open(self, item: Wanted) -> bool:
        if item.state == "have":
            path = self._folder.original(item.md5, item.extension or "")
            return not path.is_file() or path.stat().st_size != item.bytes_on_disk
        again = item.state == "failed" and item.md5 not in self._tried
        return item.state == "planned" or again

    def _on_disk(self, md5: str) -> list[Path]:
        """Files under the names that this one could have."""
        paths = (self._folder.original(md5, extension) for extension in EXTENSIONS)
        return [path for path in paths if path.is_file()]

    def _take_up(self, md5: str) -> Landed | None:
        """The file, if it lies whole in its place though no one noted it."""
        adopted = (adopt(path, md5) for path in self._on_disk(md5))
        return next((landed for landed in adopted if landed is not None), None)

    def _check_room(self, todo: Sequence[Wanted]) -> None:
        needed = ROOM * sum(item.bytes or 0 for item in todo if not self._on_disk(item.md5))
        free = shutil.disk_usage(self._folder.root).free
        if needed > free:
            raise DiskFullError(
                f"{len(todo)} pictures need {needed / 1e9:.1f} GB, and the disk of "
                f"{self._folder.root} has {free / 1e9:.1f} GB left. Free some space, lower "
                "[download].limit, or choose another --workspace."
            )
