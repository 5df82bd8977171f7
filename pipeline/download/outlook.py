"""What the store holds of a search into what is still ahead: files, bytes, hours. Asks no site.

urushi download RECIPE --dry-run
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.categories import batches
from pipeline.download.choice import Choice
from pipeline.download.posts import MOST_NAMES, Dialect
from pipeline.download.rules import Rules, rules_of
from pipeline.download.sites import dialect_of
from pipeline.download.store import Crawl, Store
from pipeline.recipe import DatasetRecipe


@dataclass(frozen=True)
class Outlook:
    """What a download has before it."""

    files: int
    """That are taken, as far as the search has been read."""
    to_fetch: int
    """Of those, the ones that have not come to an end."""
    bytes: int | None
    """Of the ones to fetch, those of no stated size taken as the others' mean; None: unknown."""
    most_to_come: int
    """Files that pages not read yet may add, at most."""
    pages: int
    """Not read yet, at least."""
    questions: int
    """About tags: of which kind they are, and what artists were called before. For posts not read
    yet, as many as came with the posts so far: there will be fewer, for tags come again."""
    seconds: float
    """For pages, files and questions at the recipe's pace, at least: the site may be slower."""
    left: dict[str, int]
    """Why posts are not taken, and how many."""

    @property
    def most(self) -> int:
        """Files that there can be in all."""
        return self.files + self.most_to_come


def outlook(dataset: DatasetRecipe, folder: DatasetFolder) -> Outlook | None:
    """What is ahead of a [download], from what the store knows; None where it knows nothing yet.

    Raises:
        RequestError: the recipe names an unknown site, or a list that cannot be read.
        UrushiError: the store cannot be read.
    """
    asked = dataset.download
    assert asked is not None
    if not folder.posts.exists():
        return None
    dialect, rules = dialect_of(asked.site), rules_of(dataset)
    with Store(folder.posts, asked.site) as store:
        state = store.crawl(dialect.query(asked).key)
        if state is None:
            return None
        return ahead(
            store, Choice(store, state, rules), state, rules, dialect, asked.requests_per_second
        )


@dataclass(frozen=True)
class Unknown:
    """What a [download] may take of which nothing is known yet, at its pace."""

    seconds: float
    """For pages and files, as many as its limit has it."""
    former_names: float
    """Seconds for what artists were called before, at most: where each picture is by another."""
    asks_kinds: bool
    """Whether the site is asked of which kind tags are: how often, its posts will tell."""


def before_it_began(dataset: DatasetRecipe) -> Unknown:
    """What a [download] may take at most, where outlook knows nothing.

    Raises:
        RequestError: the recipe names an unknown site.
    """
    asked = dataset.download
    assert asked is not None
    dialect, pace = dialect_of(asked.site), asked.requests_per_second
    return Unknown(
        seconds=(ceil(asked.limit / dialect.per_page) + asked.limit) / pace,
        former_names=_former_names(dialect, (), asked.limit) / pace,
        asks_kinds=dialect.tags(("a",)) is not None,
    )


def ahead(
    store: Store,
    choice: Choice,
    state: Crawl,
    rules: Rules,
    dialect: Dialect,
    requests_per_second: float,
) -> Outlook:
    """What is ahead of a choice of files. All of it is asked for one after the other."""
    to_fetch, size_bytes, unstated = choice.outstanding()
    most = 0 if state.finished else rules.limit - choice.count
    pages = ceil(most / dialect.per_page)
    met = store.met()
    artists = ceil(most * met.artists / met.posts) if met.posts else 0
    questions = _former_names(dialect, store.unasked_artists(), artists)
    if met.posts and dialect.tags(("a",)) is not None:
        # Each page's by themselves.
        questions += pages * ceil(dialect.per_page * met.tags / met.posts / MOST_NAMES)
    stated = to_fetch - unstated
    return Outlook(
        files=choice.count,
        to_fetch=to_fetch,
        bytes=round(size_bytes * to_fetch / stated) if stated else None if to_fetch else 0,
        most_to_come=most,
        pages=pages,
        questions=questions,
        seconds=(pages + to_fetch + most + questions) / requests_per_second,
        left=choice.left,
    )


def _former_names(dialect: Dialect, unasked: Sequence[str], to_come: int) -> int:
    """Questions for what artists were called before: the `unasked`, and as many `to_come`."""
    question = dialect.aliases(("a",))
    if question is None:
        return 0
    if question == dialect.aliases(("b",)):  # Of all tags at once.
        return int(bool(unasked) or to_come > 0)
    return sum(1 for _ in batches(unasked)) + ceil(to_come / MOST_NAMES)
