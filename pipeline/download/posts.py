"""What a site must be able to say: a post, and the dialect in which it is asked for.

To add a site, write one file with a Dialect and name it in sites.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pipeline.recipe.dataset import Download
from pipeline.recipe.size import Size

Status = Literal["active", "pending", "flagged", "deleted", "banned", "missing"]
"""missing: the site once showed the post and no longer knows it."""

UNAVAILABLE: tuple[Status, ...] = ("deleted", "missing")
"""Posts of these are not asked for; a banned one is, and is reported as hidden."""

CATEGORIES = ("general", "character", "copyright", "artist", "meta")
"""The order in which an image's tags are written."""


@dataclass(frozen=True)
class Post:
    """A post as its site stated it, in this program's words."""

    site: str
    id: int
    md5: str | None
    """None where the site hides the file."""
    extension: str
    bytes: int | None
    size: Size
    """Pixels; 0 where the site does not say."""
    rating: str
    """A rating of the recipe's, or "unknown", which no recipe takes."""
    score: int | None
    status: Status
    file_url: str | None
    """Absolute, or relative to the site's address."""
    source_url: str
    parent_id: int | None
    created_at: str
    tags: Mapping[str, tuple[str, ...]]
    """By category, in the site's order."""
    raw: str
    """The JSON it was read from."""


@dataclass(frozen=True)
class Question:
    """A GET request to a site's API, relative to its address."""

    path: str
    parameters: Mapping[str, str] = field(default_factory=dict)


class Malformed(Exception):
    """An answer that is not what the API promises. Asked again once, then an error."""


class Dialect(Protocol):
    """How one family of sites is spoken to. Pure: it asks and reads, others connect."""

    @property
    def site(self) -> str:
        """The word in [download].site, and the first part of an image's source."""

    @property
    def address(self) -> str:
        """The public site's API."""

    @property
    def domain(self) -> str:
        """The public site's files come from hosts of this domain and from no others."""

    @property
    def most_per_second(self) -> float:
        """The public site's own ceiling for requests."""

    def query(self, asked: Download) -> str:
        """The search, filters included, so that the site need not list what is not taken.

        Raises:
            RequestError: the recipe's tags hold something that cannot work.
        """

    def page(self, query: str, cursor: int | None) -> Question:
        """The page of posts with ids below `cursor`, newest first; None: the newest page."""

    def read_page(self, content: Any) -> list[Post]:
        """The posts of a page. Raises Malformed."""

    def count(self, query: str) -> Question:
        """Asks about how many posts there are."""

    def read_count(self, content: Any) -> int | None:
        """An estimate for the bar, or None. Never a reason to stop."""

    def post(self, identifier: int) -> Question:
        """Asks for one post again."""

    def read_post(self, content: Any) -> Post:
        """One post. Raises Malformed."""

    def complaint(self, content: Any) -> str:
        """The sentence in an error's body, or ""."""
