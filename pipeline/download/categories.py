"""The categories of tags, where a site's posts do not say them: asked for once and remembered.

A name of which nothing is learnt stays unknown, and with it whether it is an artist's: pictures
that have one are not captioned.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from urllib.parse import quote

from pipeline.download.posts import MOST_NAMES, UNKNOWN, Dialect, Malformed, Post, Question
from pipeline.download.store import Store
from pipeline.download.trouble import RESUMABLE
from pipeline.errors import UrushiError

MOST_CHARACTERS = 4000
"""Of names in one question's address, which servers limit."""


class Categories:
    """What is known of one site's tags."""

    def __init__(self, store: Store, ask: Callable[[Question], object], dialect: Dialect) -> None:
        self._store = store
        self._ask = ask
        self._dialect = dialect
        self._asked: set[str] = set()
        """Names that were asked for in this run, with an answer or without."""

    def told(self, posts: Sequence[Post]) -> list[Post]:
        """`posts` with their tags in categories, as far as the site tells them.

        Raises:
            UrushiError: the site fails, or its list of tags is none.
        """
        names = {name for post in posts for name in post.tags.get(UNKNOWN, ())}
        if not names:
            return list(posts)
        known = self._store.categories(names)
        for batch in batches(sorted(names - known.keys() - self._asked)):
            found = self._learn(batch)
            if found is None:
                break
            known |= found
        return [_sorted(post, known) for post in posts]

    def _learn(self, batch: Sequence[str]) -> dict[str, str] | None:
        question = self._dialect.tags(batch)
        if question is None:
            return None
        try:
            content = self._ask(question)
            found = {} if content is None else self._dialect.read_tags(content)
        except Malformed as error:
            raise UrushiError(
                f"{self._dialect.site} does not tell the categories of tags ({error}), and "
                f"pictures whose artists are not known are not captioned. Try later. {RESUMABLE}"
            ) from error
        found = {name: found[name] for name in batch if name in found}
        self._store.save_categories(found)
        self._asked.update(batch)
        return found


def _sorted(post: Post, known: dict[str, str]) -> Post:
    tags = {category: dict.fromkeys(names) for category, names in post.tags.items()}
    for name in tags.pop(UNKNOWN, {}):
        tags.setdefault(known.get(name, UNKNOWN), {})[name] = None
    return replace(post, tags={category: tuple(names) for category, names in tags.items()})


def batches(names: Iterable[str]) -> Iterator[list[str]]:
    """Names that one question can ask for."""
    batch: list[str] = []
    length = 0
    for name in names:
        size = len(quote(name)) + 1
        if batch and (len(batch) >= MOST_NAMES or length + size > MOST_CHARACTERS):
            yield batch
            batch, length = [], 0
        batch.append(name)
        length += size
    if batch:
        yield batch
