"""One wanted file to its end: fetched and verified, or a state and a reason.

What went wrong for the file's sake is tried again a few times and then a row. What went wrong for
the site's sake (nothing answers, file after file fails) is the breaker's: everyone waits, and no
file is blamed.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

import aiohttp

from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.breaker import Breaker
from pipeline.download.choice import Wanted
from pipeline.download.fetch import Interrupted, NotAllowed, NotShown, TooQuick, receive
from pipeline.download.header import Unusable
from pipeline.download.landing import Landing
from pipeline.download.pace import Pace, shared_pace
from pipeline.download.pages import WORTH_SAYING
from pipeline.download.parts import Part, begun_in
from pipeline.download.patience import Patience
from pipeline.download.placing import Landed
from pipeline.download.posts import UNAVAILABLE, Post
from pipeline.download.quarantine import (
    NotPromised,
    Promise,
    StableMismatch,
    aside_in,
    release,
)
from pipeline.download.sites import Site
from pipeline.download.store import State
from pipeline.download.trouble import RESUMABLE, unreachable
from pipeline.download.turns import Slots, shared_folder
from pipeline.errors import UrushiError
from pipeline.recipe.dataset import Download

COPIES = 3
"""Fetched of a file whose md5 is not the stated one, before it is given up."""
FAILURES_IN_A_ROW = 5
"""Files that fail one after the other, before the site is taken to be in trouble."""
LEASE = 0.1
"""Seconds for which a connection's slot is kept from request to request, if they come so close."""
SLOT = 0.02
"""Seconds between looks for a free connection, where other processes have them all."""

AskAgain = Callable[[int], Post | None]
"""Asks the site for one post by id; called from a thread."""


@dataclass(frozen=True)
class End:
    """What became of a file."""

    state: State
    reason: str = ""
    landed: Landed | None = None


@dataclass(frozen=True)
class Notes:
    """What is written down on the way to the end."""

    attempted: Callable[[str, str], None]
    """A request for the md5 that did not end in the file, and why."""
    save_post: Callable[[Post], None]
    """A post that was asked for again."""
    mark_missing: Callable[[int], None]
    """The id of a post that is no more."""


@dataclass
class _Attempts:
    """What has been tried for one file."""

    item: Wanted
    """As its post states it now."""
    copies: int
    """That came and were another picture."""
    begun: bool
    """Whether there may be a part of it."""
    began: float = field(default_factory=time.monotonic)
    interruptions: int = 0
    pauses: int = 0
    asked_again: bool = False


class Delivery:
    """Fetches wanted files of one site. One per run; its tasks share it."""

    def __init__(
        self,
        folder: DatasetFolder,
        site: Site,
        asked: Download,
        patience: Patience,
        breaker: Breaker,
        ask_again: AskAgain,
        notes: Notes,
        say: Callable[[str], None],
        rng: random.Random,
    ) -> None:
        self._folder = folder
        self._site = site
        self._asked = asked
        self._patience = patience
        self._breaker = breaker
        self._ask_again = ask_again
        self._notes = notes
        self._say = say
        self._rng = rng
        self._paces: dict[str, Pace] = {}
        self._slots: dict[str, Slots] = {}
        self._begin()
        self._aside = aside_in(folder)
        self._failed_in_a_row = 0
        self._unreachable = 0

    def close(self) -> None:
        """Gives back what is shared with other processes. Another event loop may then begin."""
        self._landing.close()
        for slots in self._slots.values():
            slots.close()
        self._slots.clear()
        self._begin()

    def _begin(self) -> None:
        """What belongs to one event loop."""
        self._connections = asyncio.Semaphore(self._asked.connections)
        self._landing = Landing(self._folder)
        self._begun = begun_in(self._folder)

    async def deliver(self, session: aiohttp.ClientSession, item: Wanted) -> End:
        """One file to its end.

        Raises:
            UrushiError: the site is down and stays so, or keeps us out.
            DiskFullError, RequestError: the disk refuses.
        """
        tries = _Attempts(item, int(item.md5 in self._aside), item.md5 in self._begun)
        while True:
            async with self._connections:
                part = await self._received(session, tries)
                if isinstance(part, End):
                    return part
                if part.is_in_memory and self._one_by_one:
                    await asyncio.to_thread(part.keep)
            try:
                landed = await self._landing.land(part, self._promise(tries.item))
            except Unusable as error:
                return End("bad_content", str(error))
            except NotPromised as error:
                end = self._another_copy(tries, error)
                if end is not None:
                    return end
                continue
            except FileNotFoundError:
                tries.interruptions += 1
                if tries.interruptions >= self._patience.tries:
                    return End("failed", "it was removed while it was on its way to its place")
                continue
            if item.md5 in self._aside:
                release(self._folder, item.md5)
            return End("have", landed=landed)

    async def _received(self, session: aiohttp.ClientSession, tries: _Attempts) -> Part | End:
        """The bytes of a file, or its end without them. Raises as `deliver`."""
        while True:
            item = tries.item
            url = self._site.file_url(item.file_url or "") if item.file_url else None
            if url is None:
                return End("refused", "the address of its file is none of the site's")
            await self._breaker.ready()
            try:
                async with self._turn(urlsplit(url).netloc):
                    part = await receive(
                        session,
                        self._site,
                        url,
                        self._promise(item),
                        self._folder,
                        self._patience,
                        fresh=tries.copies > 0 or tries.asked_again,
                        begun=tries.begun,
                        at_once=self._one_by_one,
                    )
                self._answered()
                return part
            except NotAllowed as error:
                self._answered()
                return End("refused", str(error))
            except NotPromised as error:
                self._answered()
                end = self._another_copy(tries, error)
                if end is not None:
                    return end
            except TooQuick as error:
                self._breaker.worked()
                tries.pauses += 1
                self._pause(url, error, tries.pauses)
            except NotShown as error:
                self._answered()
                self._notes.attempted(item.md5, str(error))
                if tries.asked_again:
                    return End("hidden" if error.status == 403 else "gone", str(error))
                tries.asked_again = True
                found = await self._look_again(item)
                if isinstance(found, End):
                    return found
                tries.item = found
            except Interrupted as error:
                took = time.monotonic() - tries.began
                if self._is_sites_trouble(error, tries.interruptions + 1, took):
                    tries.interruptions = 0
                    continue
                if not error.unreachable:
                    tries.interruptions += 1
                    self._notes.attempted(item.md5, str(error))
                if tries.interruptions >= self._patience.tries:
                    self._failed_in_a_row += 1
                    return End("failed", str(error))
                waits = max(1, tries.interruptions, self._unreachable)
                await asyncio.sleep(self._patience.wait(waits, self._rng))
            finally:
                tries.begun = True

    @property
    def _one_by_one(self) -> bool:
        """With one connection a kill costs one request: what is in memory is looked at and goes to
        a file first. With more, the next file is received meanwhile."""
        return self._asked.connections == 1

    def _promise(self, item: Wanted) -> Promise:
        return Promise(item.md5, item.bytes, self._asked.most_pixels)

    def _another_copy(self, tries: _Attempts, error: NotPromised) -> End | None:
        """The end of a file of which a copy came that is another picture; None: fetch it again."""
        if isinstance(error, StableMismatch):
            return End("bad_content", str(error))
        tries.copies += 1
        self._aside.add(tries.item.md5)
        self._notes.attempted(tries.item.md5, str(error))
        return End("bad_content", str(error)) if tries.copies >= COPIES else None

    @asynccontextmanager
    async def _turn(self, host: str) -> AsyncIterator[None]:
        """One of the connections to `host`, and a turn on it."""
        slots, pace = self._manners(host)
        while (slot := slots.claim()) is None:
            await asyncio.sleep(SLOT)
        try:
            await pace.turn()
            yield
        finally:
            slots.release(slot)

    def _manners(self, host: str) -> tuple[Slots, Pace]:
        """What all processes share of a host."""
        if host not in self._paces:
            rate = self._asked.requests_per_second
            self._paces[host] = shared_pace(shared_folder(), host, "files", rate)
        if host not in self._slots:
            # Where requests are seconds apart, others use the connection meanwhile.
            lease = LEASE if self._asked.requests_per_second >= 1 / LEASE else 0.0
            count = self._asked.connections
            self._slots[host] = Slots(shared_folder(), host, count, lease)
        return self._slots[host], self._paces[host]

    def _answered(self) -> None:
        """The site is well, whatever it said of this file."""
        self._breaker.worked()
        self._failed_in_a_row = self._unreachable = 0

    def _is_sites_trouble(self, error: Interrupted, tries: int, took: float) -> bool:
        """Whether the failure is none of the file's; if so, all wait.

        Raises:
            UrushiError: there is no sense in waiting.
        """
        address = self._site.address
        self._unreachable = self._unreachable + 1 if error.unreachable else 0
        if self._breaker.is_open or self._unreachable >= self._patience.tries:
            self._breaker.trip(
                unreachable(address, str(error), max(tries, self._unreachable), took)
            )
            return True
        last = tries >= self._patience.tries and not error.unreachable
        if last and self._failed_in_a_row + 1 >= FAILURES_IN_A_ROW:
            self._breaker.trip(
                f"{FAILURES_IN_A_ROW} files in a row could not be fetched from {address}, "
                f"the last because of: {error}. Try later. {RESUMABLE}"
            )
            return True
        return False

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

    async def _look_again(self, item: Wanted) -> Wanted | End:
        """Asks for the post of a file that is not there: the file to try once more, or its end."""
        post = await asyncio.to_thread(self._ask_again, item.post_id)
        if post is None:
            self._notes.mark_missing(item.post_id)
            return End("gone", "its post is gone")
        self._notes.save_post(post)
        if post.status in UNAVAILABLE:
            return End("gone", f"its post is {post.status}")
        if post.md5 is None or post.status == "banned":
            return End("hidden", "the site no longer shows its file")
        if post.rating not in self._asked.ratings:
            return End("refused", f"its rating is now {post.rating}")
        if post.md5 != item.md5:
            return End("gone", "its post has another file now")
        return replace(item, file_url=post.file_url, bytes=post.bytes)
