"""What a site must be able to say: a post, and the dialect in which it is asked for.

To add a site, write one file with a Dialect and name it in sites.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pipeline.download.terms import Search
from pipeline.recipe.dataset import Download
from pipeline.size import Size

Status = Literal["active", "pending", "flagged", "deleted", "banned", "missing"]
"""missing: the site once showed the post and no longer knows it."""

UNAVAILABLE: tuple[Status, ...] = ("deleted", "missing")
"""Posts of these are not asked for; a banned one is, and is reported as hidden."""

CATEGORIES = ("general", "character", "copyright", "artist", "meta")
"""The order in which an image's tags are written."""

MOST_NAMES = 100
"""Tags whose categories are asked for in one question."""

UNKNOWN = "unknown"
"""The category of names that a site lists without saying what they are. One may be an artist's."""


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
    """By category, in the site's order; names of no known category under UNKNOWN."""
    raw: str
    """The JSON it was read from."""
    uploader: str = ""
    """The account's name, or its number where the site gives no more."""
    pixel_hash: str | None = None
    """The site's own digest of the decoded pixels, where it states one."""
    animated: bool = False
    """Whether the site says that it moves: a video, an animation, anything with a duration."""

    @property
    def tags_known(self) -> bool:
        """Whether every tag's category is known, so that artists can be told from the rest."""
        return not self.tags.get(UNKNOWN)


@dataclass(frozen=True)
class Account:
    """How a site wants a key to be sent, and what it is made of."""

    fields: tuple[str, ...] = ()
    """Such as login and api_key; none where the site is read without an account."""
    place: Literal["header", "address"] = "header"
    """As HTTP Basic, or as parameters of the address."""
    required: bool = False
    """Whether the public site answers no one without."""


@dataclass(frozen=True)
class Question:
    """A GET request to a site's API, relative to its address."""

    path: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    form: Literal["json", "xml"] = "json"
    """What the answer is written in."""
    may_be_empty: bool = False
    """Whether an answer without a single byte is the site's way of saying: none."""


class Malformed(Exception):
    """An answer that is not what the API promises. Asked again once, then an error."""


class Dialect(Protocol):
    """How one family of sites is spoken to. Pure: it asks and reads, others connect.

    An answer's `content` is what json.loads makes of it, or an xml.etree Element.
    """

    @property
    def site(self) -> str:
        """The word in [download].site, and the first part of an image's source."""

    @property
    def address(self) -> str:
        """The public site's API."""

    @property
    def domains(self) -> tuple[str, ...]:
        """The public site's own: files come from hosts of these and from no others."""

    @property
    def most_per_second(self) -> float:
        """The public site's own ceiling for requests."""

    @property
    def per_page(self) -> int:
        """Posts that a full page holds."""

    @property
    def most_ids(self) -> int:
        """Posts that `by_ids` may ask for at once; 0 where the site looks up only single ones."""

    @property
    def empty_pages(self) -> int:
        """Empty pages in a row that are the end of a search."""

    @property
    def account(self) -> Account:
        """What the site knows an account by."""

    def query(self, asked: Download) -> Search:
        """The search, filters included, so that the site need not list what is not taken.

        Raises:
            RequestError: the recipe's tags or ratings hold something that cannot work.
        """

    def page(self, query: str, cursor: int | None, floor: int | None = None) -> Question:
        """The page of posts with ids below `cursor`, newest first; None: the newest page.

        With `floor`, ids from there on only: sites that time out over a search answer for a part.
        """

    def page_after(self, query: str, cursor: int) -> Question:
        """The page of the lowest ids above `cursor`, in whatever order."""

    def by_ids(self, identifiers: Sequence[int]) -> Question:
        """These posts, whatever has become of them; answered by a page."""

    def read_page(self, content: Any) -> list[Post]:
        """The posts of a page. Raises Malformed."""

    def count(self, query: str) -> Question | None:
        """Asks about how many posts there are; None where the site does not tell."""

    def read_count(self, content: Any) -> int | None:
        """An estimate for the bar, or None. Never a reason to stop."""

    def post(self, identifier: int) -> Question:
        """Asks for one post again."""

    def read_post(self, content: Any) -> Post | None:
        """One post, or None where there is none. Raises Malformed."""

    def tags(self, names: Sequence[str]) -> Question | None:
        """Asks for the categories of at most MOST_NAMES tags; None where posts say them."""

    def read_tags(self, content: Any) -> dict[str, str]:
        """Category by name, of those that the site knows. Raises Malformed."""

    def aliases(self, names: Sequence[str]) -> Question | None:
        """Asks what at most MOST_NAMES tags were called before; None where the site does not tell.

        An answer may hold as many as the question's "limit" says, where it says one.
        """

    def read_aliases(self, content: Any) -> list[tuple[str, str]]:
        """(former name, name of today), of other tags too. Raises Malformed."""

    def complaint(self, content: Any) -> str:
        """The sentence in an error's body, or ""."""
