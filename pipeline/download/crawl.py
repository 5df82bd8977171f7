"""A search, page by page, into the store: by falling id, so that new posts shift nothing.

Only an empty page is the end. A short one is not: sites hide posts from pages after counting them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.download.categories import Categories
from pipeline.download.choice import files_known
from pipeline.download.pages import Pages, TimedOut
from pipeline.download.posts import Dialect, Malformed, Post, Question
from pipeline.download.rules import Rules
from pipeline.download.store import Crawl, Store
from pipeline.download.trouble import RESUMABLE
from pipeline.errors import RequestError, UrushiError
from pipeline.progress import Progress
from pipeline.recipe.dataset import Download

FIRST_SPAN = 500_000
LEAST_SPAN = 500
"""Ids that are asked for at once where a site times out over all of a search."""


def crawl(
    store: Store,
    pages: Pages,
    dialect: Dialect,
    asked: Download,
    rules: Rules,
    progress: Progress,
    what: str,
) -> Crawl:
    """Reads a search until its limit of files is known or no post is left, from where it was left.

    Raises:
        RequestError: no post matches, or the site refuses the search.
        UrushiError: the site is down, or sends what is not its API.
    """
    search = dialect.query(asked)
    reader = Reader(pages, dialect, search.text)
    categories = Categories(store, reader.ask, dialect)
    state = store.crawl(search.key)
    if state is None:
        sheet = reader.below(None)
        if sheet.is_end:
            raise RequestError(
                f"{dialect.site} has no posts for [download].tags = {asked.tags!r} with rating "
                f"{' or '.join(asked.ratings)}. Check the spelling (tags have underscores, as in "
                "blue_archive), or take more [download].ratings."
            )
        posts = [post for post in categories.told(sheet.posts) if search.takes(post.tags)]
        estimate = _estimate(pages, dialect, search.text)
        state = store.begin_crawl(
            search.key, estimate, posts, cursor=sheet.cursor, finished=sheet.is_end
        )
    if state.finished:
        return state
    known = files_known(store, state, rules)
    if known >= rules.limit:
        return state
    total = min(rules.limit, state.estimate or rules.limit)
    with progress.bar(f"{what}: posts", total, "posts", min(known, total)) as bar:
        most = (
            known  # Counting takes a look at all of the store, so as long as it can be less, not.
        )
        while not state.finished and known < rules.limit:
            sheet = reader.below(state.cursor)
            posts = [post for post in categories.told(sheet.posts) if search.takes(post.tags)]
            state = store.save_page(state, posts, cursor=sheet.cursor, finished=sheet.is_end)
            before, most = most, most + len(posts)
            bar.advance(max(0, min(most, total) - min(before, total)))
            if most >= rules.limit:
                known = most = files_known(store, state, rules)
    return state


def crawl_after(
    store: Store, pages: Pages, dialect: Dialect, asked: Download, cursor: int
) -> Iterator[list[Post]]:
    """The posts of a search with ids above `cursor`, from the lowest on, page by page.

    Raises:
        RequestError, UrushiError: as `crawl`.
    """
    search = dialect.query(asked)
    reader = Reader(pages, dialect, search.text)
    categories = Categories(store, reader.ask, dialect)
    while posts := reader.above(cursor):
        cursor = max(post.id for post in posts)
        yield [post for post in categories.told(posts) if search.takes(post.tags)]


def read_again(
    store: Store, pages: Pages, dialect: Dialect, asked: Download, ids: Sequence[int]
) -> Iterator[tuple[list[int], list[Post]]]:
    """What has become of posts: in batches, the ids asked for and the posts that there still are.

    Raises:
        RequestError, UrushiError: as `crawl`.
    """
    reader = Reader(pages, dialect, dialect.query(asked).text)
    categories = Categories(store, reader.ask, dialect)
    step = dialect.most_ids or dialect.per_page
    left = sorted(set(ids), reverse=True)
    for start in range(0, len(left), step):
        batch = left[start : start + step]
        posts = reader.these(batch)
        # Twice, before a post is said to be gone: an answer may have been short.
        absent = [number for number in batch if number not in posts]
        if absent:
            posts |= reader.these(absent) if dialect.most_ids else reader.singly(absent)
        yield batch, categories.told(list(posts.values()))


@dataclass(frozen=True)
class Sheet:
    """A page, and where the next one begins."""

    posts: tuple[Post, ...]
    cursor: int | None
    is_end: bool


class Reader:
    """Asks a site for pages of one search, as often and as much at a time as it takes."""

    def __init__(self, pages: Pages, dialect: Dialect, text: str) -> None:
        self._pages = pages
        self._dialect = dialect
        self._text = text
        self._span: int | None = None
        """Ids asked for at once, where the site has timed out over more."""

    def below(self, cursor: int | None) -> Sheet:
        """The page below `cursor`."""
        if self._span is None:
            try:
                return self._sheet(cursor, None)
            except TimedOut:
                self._span = FIRST_SPAN
        return self._part(self._newest() + 1 if cursor is None else cursor)

    def above(self, cursor: int) -> list[Post]:
        """The posts of the page above `cursor`; none at the end."""
        for _ in range(self._dialect.empty_pages):
            posts = self._posts(self._dialect.page_after(self._text, cursor), above=cursor)
            if posts:
                return posts
        return []

    def these(self, ids: Sequence[int]) -> dict[int, Post]:
        """Posts by id, as far as one question finds them."""
        if self._dialect.most_ids:
            question = self._dialect.by_ids(ids)
        else:
            question = self._dialect.page(self._text, max(ids) + 1, min(ids))
        wanted = set(ids)
        return {post.id: post for post in self._posts(question) if post.id in wanted}

    def singly(self, ids: Sequence[int]) -> dict[int, Post]:
        """Posts by id, each asked for by itself."""
        posts = ((number, self.one(number)) for number in ids)
        return {number: post for number, post in posts if post is not None}

    def one(self, number: int) -> Post | None:
        """One post, or None where the site knows it no longer."""
        for last in (False, True):
            content = self.ask(self._dialect.post(number))
            try:
                return None if content is None else self._dialect.read_post(content)
            except Malformed as error:
                if last:
                    raise self._no_api(error) from error
        raise AssertionError

    def ask(self, question: Question) -> object:
        """An answer, asked for again if the first makes no sense."""
        try:
            return self._pages.ask(question)
        except TimedOut as error:
            raise self._too_much(error) from error
        except Malformed:
            pass
        try:
            return self._pages.ask(question)
        except (Malformed, TimedOut) as error:
            raise self._no_api(error) from error

    def _sheet(self, cursor: int | None, floor: int | None) -> Sheet:
        for _ in range(self._dialect.empty_pages):
            question = self._dialect.page(self._text, cursor, floor)
            posts = self._posts(question, below=cursor, may_time_out=True)
            if posts:
                return Sheet(tuple(posts), min(post.id for post in posts), False)
        return Sheet((), cursor, True)

    def _part(self, top: int) -> Sheet:
        """The page below `top` of as many ids as the site has the time for."""
        span = self._span or FIRST_SPAN
        while True:
            floor = max(1, top - span)
            try:
                sheet = self._sheet(top, floor)
            except TimedOut as error:
                if span <= LEAST_SPAN:
                    raise self._too_much(error) from error
                span = max(LEAST_SPAN, span // 4)
                continue
            self._span = span * 2 if len(sheet.posts) < self._dialect.per_page else span
            if not sheet.is_end:
                return sheet
            return Sheet((), floor, floor == 1)

    def _newest(self) -> int:
        posts = self._posts(self._dialect.page("", None))
        return max((post.id for post in posts), default=0)

    def _posts(
        self,
        question: Question,
        *,
        below: int | None = None,
        above: int | None = None,
        may_time_out: bool = False,
    ) -> list[Post]:
        """A page's posts, each once; asked for again if the first answer makes no sense."""
        for last in (False, True):
            try:
                return self._checked(question, below, above)
            except Malformed as error:
                if last:
                    raise self._no_api(error) from error
            except TimedOut as error:
                if may_time_out:
                    raise
                raise self._too_much(error) from error
        raise AssertionError

    def _checked(self, question: Question, below: int | None, above: int | None) -> list[Post]:
        content = self._pages.ask(question)
        if content is None:
            raise Malformed("there is no such page (404)")
        posts = {post.id: post for post in self._dialect.read_page(content)}
        fresh = [
            post
            for post in posts.values()
            if (below is None or post.id < below) and (above is None or post.id > above)
        ]
        if posts and not fresh:
            raise Malformed("it shows the same page again")  # A stale cache; it would never end.
        return fresh

    def _no_api(self, error: Exception) -> UrushiError:
        return UrushiError(
            f"What {self._pages.address} answers is not {self._dialect.site}'s API: {error}. "
            f"Check [download].site and [download].host. {RESUMABLE}"
        )

    def _too_much(self, error: Exception) -> UrushiError:
        return UrushiError(
            f"{self._pages.address} takes too long over the search ({error}). Ask for fewer tags, "
            f"or try later. {RESUMABLE}"
        )


def _estimate(pages: Pages, dialect: Dialect, query: str) -> int | None:
    """How many posts the site thinks there are, for the bar. Sites time out over large counts."""
    question = dialect.count(query)
    try:
        return None if question is None else dialect.read_count(pages.ask(question))
    except (Malformed, TimedOut, UrushiError):
        return None
