"""A search, page by page, into the store: by falling id, so that new posts shift nothing.

Only an empty page is the end. A short one is not: sites hide posts from pages after counting them.
"""

from pipeline.download.pages import Pages
from pipeline.download.posts import Dialect, Malformed, Post
from pipeline.download.store import Crawl, Store
from pipeline.download.trouble import RESUMABLE
from pipeline.errors import RequestError, UrushiError
from pipeline.progress import Progress
from pipeline.recipe.dataset import Download


def crawl(
    store: Store, pages: Pages, dialect: Dialect, asked: Download, progress: Progress, what: str
) -> Crawl:
    """Reads a search until its limit of files is known or no post is left, from where it was left.

    Raises:
        RequestError: no post matches, or the site refuses the search.
        UrushiError: the site is down, or sends what is not its API.
    """
    query = dialect.query(asked)
    state = store.crawl(query)
    if state is None:
        page = _page(pages, dialect, query, None)
        if not page:
            raise RequestError(
                f"{dialect.site} has no posts for [download].tags = {asked.tags!r} with rating "
                f"{' or '.join(asked.ratings)}. Check the spelling (tags have underscores, as in "
                "blue_archive), or take more [download].ratings."
            )
        state = store.begin_crawl(query, _estimate(pages, dialect, query), page)
    known = store.count(state, asked.ratings)
    if state.finished or known >= asked.limit:
        return state
    total = min(asked.limit, state.estimate or asked.limit)
    with progress.bar(f"{what}: posts", total, "posts", min(known, total)) as bar:
        while not state.finished and known < asked.limit:
            state = store.save_page(state, _page(pages, dialect, query, state.cursor))
            before, known = known, store.count(state, asked.ratings)
            bar.advance(max(0, min(known, total) - min(before, total)))
    return state


def _estimate(pages: Pages, dialect: Dialect, query: str) -> int | None:
    """How many posts the site thinks there are, for the bar. Sites time out over large counts."""
    try:
        return dialect.read_count(pages.ask(dialect.count(query)))
    except (Malformed, UrushiError):
        return None


def _page(pages: Pages, dialect: Dialect, query: str, cursor: int | None) -> list[Post]:
    """The page of posts below `cursor`, asked for again if the first answer makes no sense."""
    try:
        return _checked(pages, dialect, query, cursor)
    except Malformed:
        pass
    try:
        return _checked(pages, dialect, query, cursor)
    except Malformed as error:
        raise UrushiError(
            f"What {pages.address} answers is not {dialect.site}'s API: {error}. "
            f"Check [download].site and [download].host. {RESUMABLE}"
        ) from error


def _checked(pages: Pages, dialect: Dialect, query: str, cursor: int | None) -> list[Post]:
    content = pages.ask(dialect.page(query, cursor))
    if content is None:
        raise Malformed("there is no such page (404)")
    posts = dialect.read_page(content)
    fresh = [post for post in posts if cursor is None or post.id < cursor]
    if posts and not fresh:
        raise Malformed("it shows the same page again")  # A stale cache; it would never end.
    return fresh
