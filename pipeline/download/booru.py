"""A [download] recipe into images/: a search into the store, its files onto the disk, records.

Nothing is done twice. Pages go into the store with the cursor behind them, files under the name of
their md5; whatever a killed run left is where the next one goes on.
"""

import random
import time
from collections.abc import Iterator
from itertools import groupby

from pipeline.artefacts.chain import download_fingerprint
from pipeline.artefacts.receipts import Receipt
from pipeline.artefacts.records import Failure, ImageRecord
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.crawl import crawl
from pipeline.download.images import merged_tags, write_images
from pipeline.download.originals import Originals
from pipeline.download.pace import Pace
from pipeline.download.pages import Pages
from pipeline.download.patience import Patience
from pipeline.download.posts import Malformed, Post
from pipeline.download.sites import Site, site_of
from pipeline.download.store import Crawl, Store, Wanted
from pipeline.errors import UrushiError
from pipeline.progress import Progress
from pipeline.recipe import DatasetRecipe
from pipeline.recipe.dataset import Download

MOST_ROUNDS = 10
"""Of reading the search and settling its files. Where posts change meanwhile, one is not enough."""


def from_booru(
    dataset: DatasetRecipe,
    asked: Download,
    folder: DatasetFolder,
    progress: Progress,
    patience: Patience,
) -> Receipt:
    """Downloads `asked` into `folder`, whose lock is held.

    Raises:
        RequestError: no posts, or a search, contact or workspace that cannot be used.
        UrushiError: the site is down or keeps failing, or not one file could be had.
        DiskFullError: there is no room.
    """
    began = time.monotonic()
    site = site_of(asked)
    rng = random.Random()
    what = f"download {dataset.name}"
    pace = Pace(asked.requests_per_second)
    with (
        Store(folder.posts, asked.site) as store,
        Pages(site, pace, patience, progress.say, rng) as pages,
    ):
        originals = Originals(
            store,
            folder,
            site,
            asked,
            patience,
            lambda post_id: _ask_again(pages, site, post_id),
            progress.say,
            rng,
        )
        for _ in range(MOST_ROUNDS):
            state = crawl(store, pages, site.dialect, asked, progress, what)
            wanted = store.wanted(state, asked.ratings, asked.limit)
            todo = originals.unsettled(wanted)
            if not todo:
                break
            with progress.bar(what, len(wanted), "pictures", len(wanted) - len(todo)) as bar:
                originals.settle(todo, bar)
        else:
            raise UrushiError(
                f"{site.address} changes its posts more quickly than they can be read. Run the "
                "same command again to go on."
            )
        images = list(_records(store, state, asked, wanted, folder))
        failures = list(_failures(store, state, asked, wanted))
    if not images:
        reasons = "; ".join(sorted({failure.reason for failure in failures})[:3])
        raise UrushiError(
            f"Not one of the {len(failures)} pictures that {site.address} has for "
            f"[download].tags = {asked.tags!r} could be had: {reasons}."
        )
    return write_images(
        folder,
        download_fingerprint(dataset),
        images,
        failures,
        inputs={"address": site.address, "query": site.dialect.query(asked)},
        seconds=time.monotonic() - began,
    )


def _ask_again(pages: Pages, site: Site, post_id: int) -> Post | None:
    for last in (False, True):
        content = pages.ask(site.dialect.post(post_id))
        try:
            return None if content is None else site.dialect.read_post(content)
        except Malformed as error:
            if last:
                raise UrushiError(
                    f"{site.address} gives no readable post {post_id}: {error}."
                ) from error
    return None


def _records(
    store: Store, state: Crawl, asked: Download, wanted: list[Wanted], folder: DatasetFolder
) -> Iterator[ImageRecord]:
    """One record a picture: the oldest post's facts, the tags of all its posts."""
    here = {item.md5: item for item in wanted if item.state == "have"}
    for md5, group in groupby(store.facts(state, asked.ratings), key=lambda facts: facts.md5):
        posts = list(group)
        item = here.get(md5)
        if item is None or item.extension is None:
            continue
        oldest = posts[0]
        path = folder.original(md5, item.extension)
        yield ImageRecord(
            md5=md5,
            path=path.relative_to(folder.root).as_posix(),
            width=oldest.size.width,
            height=oldest.size.height,
            tags=merged_tags(post.tags for post in posts),
            score=oldest.score,
            rating=oldest.rating,
            source=f"{asked.site}:{oldest.post_id}",
        )


def _failures(
    store: Store, state: Crawl, asked: Download, wanted: list[Wanted]
) -> Iterator[Failure]:
    """What should have come and could not: files by md5, hidden posts without one."""
    for item in wanted:
        if item.state != "have":
            reason = f"{asked.site}:{item.post_id} {item.state}: {item.reason}"
            yield Failure(md5=item.md5, reason=reason)
    oldest = min((item.post_id for item in wanted), default=0)
    for post_id in store.hidden(state, asked.ratings, oldest if len(wanted) >= asked.limit else 0):
        yield Failure(
            md5="", reason=f"{asked.site}:{post_id} hidden: the site does not show its file"
        )
