"""What the store holds of a search into what is still ahead: files, bytes, hours. Asks no site.

urushi download RECIPE --dry-run
"""

from dataclasses import dataclass

from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.choice import Choice
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
    seconds: float
    """For pages and files at the recipe's pace, at least: the site may be slower."""
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
            Choice(store, state, rules), state, rules, dialect.per_page, asked.requests_per_second
        )


def before_it_began(dataset: DatasetRecipe) -> float:
    """Seconds for all that a [download] may take, at its pace, when nothing is known of it yet.

    Raises:
        RequestError: the recipe names an unknown site.
    """
    asked = dataset.download
    assert asked is not None
    pages = -(-asked.limit // dialect_of(asked.site).per_page)
    return (pages + asked.limit) / asked.requests_per_second


def ahead(
    choice: Choice, state: Crawl, rules: Rules, per_page: int, requests_per_second: float
) -> Outlook:
    """What is ahead of a choice of files. Pages and files are asked for one after the other."""
    to_fetch, size_bytes, unstated = choice.outstanding()
    most = 0 if state.finished else rules.limit - choice.count
    pages = -(-most // per_page)
    stated = to_fetch - unstated
    return Outlook(
        files=choice.count,
        to_fetch=to_fetch,
        bytes=round(size_bytes * to_fetch / stated) if stated else None if to_fetch else 0,
        most_to_come=most,
        pages=pages,
        seconds=(pages + to_fetch + most) / requests_per_second,
        left=choice.left,
    )
