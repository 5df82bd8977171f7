"""A [download] recipe into images/: a search into the store, its files onto the disk, records.

Nothing is done twice. Pages go into the store with the cursor behind them, files under the name of
their md5; whatever a killed run left is where the next one goes on. What is taken of it all is
decided anew at every export.
"""

import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

from pipeline.artefacts.chain import download_fingerprint
from pipeline.artefacts.receipts import Receipt
from pipeline.artefacts.records import Failure, ImageRecord
from pipeline.artefacts.workspace import DatasetFolder, original_name
from pipeline.download.aliases import Aliases
from pipeline.download.breaker import Breaker
from pipeline.download.choice import Choice, Facts
from pipeline.download.crawl import Reader, crawl
from pipeline.download.examine import Examiner, examine_all
from pipeline.download.images import Export, merged_tags, write_images
from pipeline.download.moments import scored_at
from pipeline.download.originals import Originals, Todo
from pipeline.download.pace import shared_pace
from pipeline.download.pages import Pages
from pipeline.download.patience import Patience
from pipeline.download.rules import Rules, rules_of
from pipeline.download.sites import Site, site_of
from pipeline.download.store import Crawl, Store
from pipeline.download.turns import shared_folder
from pipeline.errors import UrushiError
from pipeline.progress import Progress
from pipeline.recipe import DatasetRecipe
from pipeline.recipe.dataset import Download

MOST_ROUNDS = 10
"""Of reading the search and settling its files. Where posts change meanwhile, one is not enough."""
UNTOLD_FILE = "refused: the kinds of its tags are not known"
OWN = re.compile("(?<= )[0-9a-f]{32}|[a-z]+://[^ ,]+")
"""What is of one file alone in a reason."""


@dataclass(frozen=True)
class Visit:
    """A site that is being asked, and what is known of it: all that a download works with."""

    dataset: DatasetRecipe
    asked: Download
    rules: Rules
    folder: DatasetFolder
    site: Site
    store: Store
    pages: Pages
    aliases: Aliases
    originals: Originals
    progress: Progress

    @property
    def what(self) -> str:
        """The bars' name."""
        return f"download {self.dataset.name}"

    def read(self) -> Crawl:
        """The search, read until its limit is known or no post is left, and what its artists were
        called. Raises as crawl."""
        while True:
            state = crawl(
                self.store,
                self.pages,
                self.site.dialect,
                self.asked,
                self.rules,
                self.progress,
                self.what,
            )
            # A former name may exclude files that were counted towards the limit.
            if not self.aliases.learn(self.progress, self.what):
                return state

    def retry(self) -> None:
        """The files of the search that did not come are to be tried once more."""
        state = self.store.crawl(self.site.dialect.query(self.asked).key)
        if state is not None:
            Choice(self.store, state, self.rules).reopen_all()

    def choose(self, state: Crawl) -> tuple[Choice, Todo]:
        """The files of a search as its posts are now, and what of them is still to come."""
        choice = Choice(self.store, state, self.rules)
        return choice, self.originals.todo(choice.wanted())


@contextmanager
def visiting(
    dataset: DatasetRecipe, folder: DatasetFolder, progress: Progress, patience: Patience
) -> Iterator[Visit]:
    """The site of `dataset`'s [download], ready to be asked. The folder's lock is held.

    Raises:
        RequestError: a search, contact, exclusion list or workspace that cannot be used.
        UrushiError: the store cannot be read.
    """
    asked = dataset.download
    assert asked is not None
    rules = rules_of(dataset)
    site = site_of(asked)
    rng = random.Random()
    breaker = Breaker(patience, progress.say, rng)
    pace = shared_pace(shared_folder(), site.host, "api", asked.requests_per_second)
    with (
        Store(folder.posts, asked.site) as store,
        Pages(site, pace, patience, breaker, progress.say, rng) as pages,
    ):
        reader = Reader(pages, site.dialect, "")
        originals = Originals(
            store,
            folder,
            site,
            asked,
            patience,
            breaker,
            reader.one,
            progress.say,
            rng,
        )
        aliases = Aliases(store, reader.ask, site.dialect)
        yield Visit(dataset, asked, rules, folder, site, store, pages, aliases, originals, progress)


def from_booru(visit: Visit) -> Receipt:
    """Downloads what `visit` asks for and writes its images.

    Raises:
        RequestError: no posts, or a search or workspace that cannot be used.
        UrushiError: the site is down or keeps failing, or not one file could be had.
        DiskFullError: there is no room.
    """
    began = time.monotonic()
    choice = _settled(visit, Examiner(visit.store, visit.folder, visit.rules.most_pixels))
    choice.log()
    doubles = choice.doubles()
    failures = list(_failures(visit.store.site, choice))
    kept = []
    for _, source, seen in choice.here():
        if seen.md5 not in doubles:
            kept.append(seen)
            continue
        reason = f"{source} double: its pixels are those of {doubles[seen.md5]}"
        failures.append(Failure(md5=seen.md5, reason=reason))
    if not kept:
        reasons = "; ".join(sorted({failure.reason for failure in failures})[:3])
        left = "; ".join(f"{count} {why}" for why, count in choice.left.items())
        raise UrushiError(
            f"Not one picture that {visit.site.address} has for [download].tags = "
            f"{visit.asked.tags!r} could be had: {reasons or left}."
        )
    return write_images(
        visit.folder,
        download_fingerprint(visit.dataset),
        Export(
            _records(visit, choice, doubles),
            failures,
            kept,
            _left(choice, failures),
            visit.store.formers,
        ),
        inputs={"address": visit.site.address, "query": visit.site.dialect.query(visit.asked).key},
        seconds=time.monotonic() - began,
    )


def _settled(visit: Visit, examiner: Examiner) -> Choice:
    """The choice of files, each of which has come to its end."""
    for _ in range(MOST_ROUNDS):
        choice, todo = visit.choose(visit.read())
        if todo.files:
            done = choice.count - todo.files
            with visit.progress.bar(visit.what, choice.count, "pictures", done) as bar:
                visit.originals.settle(choice.wanted(), todo, bar, examiner)
        # What an earlier run left, killed between a file and the look at it.
        examine_all(examiner, choice.unexamined(), visit.progress, visit.what)
        if not todo.files:
            return choice
    raise UrushiError(
        f"{visit.site.address} changes its posts more quickly than they can be read. Run the same "
        "command again to go on."
    )


def _records(visit: Visit, choice: Choice, doubles: dict[str, str]) -> Iterator[ImageRecord]:
    """One record a picture: the oldest post's facts, the tags of all its posts and doubles."""
    twins: dict[str, list[str]] = {}
    for md5, first in doubles.items():
        twins.setdefault(first, []).append(md5)
    here = ((seen.md5, extension) for extension, _, seen in choice.here())
    md5, extension = next(here)
    for posted, group in groupby(choice.facts(), key=lambda facts: facts.md5):
        # Both go by rising md5, and every file that is here has its posts.
        if posted != md5:
            continue
        posts = list(group)
        if md5 not in doubles:
            also = [facts for twin in twins.get(md5, ()) for facts in choice.facts(twin)]
            yield _record(visit.store.site, original_name(md5, extension), posts, also)
        md5, extension = next(here, ("", ""))


def _record(site: str, path: str, posts: list[Facts], also: list[Facts]) -> ImageRecord:
    oldest = posts[0]
    return ImageRecord(
        md5=oldest.md5,
        path=path,
        width=oldest.size.width,
        height=oldest.size.height,
        tags=merged_tags(post.tags for post in (*posts, *also)),
        score=oldest.score,
        rating=oldest.rating,
        source=f"{site}:{oldest.post_id}",
        created_at=oldest.created_at,
        scored_at=scored_at(oldest.created_at, oldest.fetched_at),
        kin=tuple(
            dict.fromkeys(
                f"{site}:{number}"
                for post in (*posts, *also)
                for number in (post.post_id, post.parent)
                if number is not None
            )
        ),
    )


def _failures(site: str, choice: Choice) -> Iterator[Failure]:
    """What should have come and could not: files by md5, hidden posts without one."""
    for item in choice.lost():
        reason = f"{site}:{item.post_id} {item.state}: {item.reason}"
        yield Failure(md5=item.md5, reason=reason)
    for post_id in choice.hidden():
        yield Failure(md5="", reason=f"{site}:{post_id} hidden: the site does not show its file")
    for post_id, md5 in choice.untold():
        yield Failure(
            md5=md5,
            reason=f"{site}:{post_id} {UNTOLD_FILE}, so that an artist's name could come into its "
            "caption",
        )


def _left(choice: Choice, failures: list[Failure]) -> dict[str, int]:
    """Every reason once, with how many it kept out: of posts by the rules, then of files."""
    reasons = Counter(choice.left)
    for failure in failures:
        _, _, reason = failure.reason.partition(" ")
        if failure.md5 and not reason.startswith(UNTOLD_FILE):
            reasons[summed_up(reason)] += 1
    return dict(reasons)


def summed_up(reason: str) -> str:
    """A reason without what is of one file alone, so that equal ones can be counted."""
    return re.split(r"[;(]", OWN.sub("…", reason))[0].strip()
