"""A search that was read earlier into one that is up to date, without a file fetched again.

Posts that are newer than those it was read to, and then every other post by its id: scores and
ratings change, posts are deleted, restored and given other files. What was asked stands in the
store at once, so that a killed refresh goes on where it was.
"""

from datetime import UTC, datetime, timedelta

from pipeline.download.booru import Visit
from pipeline.download.choice import Choice
from pipeline.download.crawl import crawl_after, read_again
from pipeline.download.moments import moment
from pipeline.download.store import Crawl

OVERLAP = timedelta(days=3)
"""Before the newest post that is known: how far back new ones are looked for. A post may be hidden
or miss its tags for as long as moderators take."""
RENAMES = timedelta(days=30)
"""After which it is asked again what an artist was called before: tags are rarely renamed."""


def refresh(visit: Visit) -> None:
    """Asks the site anew for all that `visit`'s search has shown; nothing where it never began.

    Raises:
        RequestError: the site refuses the search.
        UrushiError: the site is down, or sends what is not its API.
    """
    store, dialect, asked = visit.store, visit.site.dialect, visit.asked
    state = store.crawl(dialect.query(asked).key)
    if state is None:
        return
    since = store.begin_refresh(state)
    newest = f"{visit.what}: newer posts"
    with visit.progress.bar(newest, 0, "posts") as bar:
        for posts in crawl_after(store, visit.pages, dialect, asked, _start(visit, state)):
            store.save_newer(state, posts)
            bar.advance(len(posts))
    stale = store.stale(state, since)
    with visit.progress.bar(f"{visit.what}: posts again", len(stale), "posts") as bar:
        for ids, posts in read_again(store, visit.pages, dialect, asked, stale):
            store.save_again(posts, set(ids) - {post.id for post in posts})
            bar.advance(len(ids))
    Choice(store, state, visit.rules).reopen()
    store.end_refresh(state)
    before = (datetime.now(UTC) - RENAMES).isoformat(timespec="milliseconds")
    visit.aliases.learn(visit.progress, visit.what, before)


def _start(visit: Visit, state: Crawl) -> int:
    """The id above which new posts are looked for."""
    newest = visit.store.newest(state)
    times = [moment(created_at) for _, created_at in newest]
    known = [time for time in times if time is not None]
    if not known:
        return newest[0][0] if newest else 0
    before = max(known) - OVERLAP
    start = newest[-1][0] - 1
    for (post_id, _), time in zip(newest, times, strict=True):
        if time is not None and time <= before:
            return post_id
    return start
