"""A Danbooru search string into a question that posts answer yes or no.

Tags and metatags as the site knows them: `robot -red_square rating:g,s score:>=6 id:1..99`.
Metatags that filter do not count against the number of tags that a visitor may ask for; `order:`
does. What the site knows and this server does not is refused by name, never ignored.
"""

import fnmatch
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from demo.corpus import Post

Test = Callable[[Post], bool]
Order = Literal["id_desc", "id_asc", "score", "score_asc"]

TAG_LIMIT = 2
"""Tags per search for a visitor without an account."""
ORDERS: dict[str, Order] = {
    "id": "id_asc",
    "id_asc": "id_asc",
    "id_desc": "id_desc",
    "score": "score",
    "score_desc": "score",
    "score_asc": "score_asc",
}
KNOWN_ELSEWHERE = re.compile(
    "age|approver|arttags|chartags|child|comm|commenter|copytags|date|disapproved|downvotes|duration"
    "|embedded|exif|fav|favcount|favgroup|flagger|gentags|has|is|metatags|mpixels|note|noter|ordfav"
    "|ordpool|parent|pixiv|pixiv_id|pool|random|ratio|search|source|upvote|upvotes|upvoter|user"
)
"""Metatags of the site that this server does not answer."""


class QueryError(Exception):
    """A search that cannot be answered. `kind` is the class name the site would give."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Query:
    """A search, parsed."""

    tests: tuple[Test, ...]
    order: Order = "id_desc"
    limit: int | None = None

    def matches(self, post: Post) -> bool:
        return all(test(post) for test in self.tests)


def parse(text: str, most_tags: int = TAG_LIMIT) -> Query:
    """The search that `text` means.

    Raises:
        QueryError: over the tag limit, or a metatag or value that is not understood.
    """
    tests: list[Test] = []
    order: Order = "id_desc"
    limit = None
    paid = 0
    for term in text.lower().split():
        negated = term.startswith("-") and len(term) > 1
        body = term[1:] if negated else term
        name, colon, value = body.partition(":")
        if colon and name in ("order", "limit"):
            if negated:
                raise QueryError("Post::SearchError", f"-{name}: means nothing")
            if name == "limit":
                limit = _number(value, body)
                continue
            if value not in ORDERS:
                raise QueryError("Post::SearchError", f"order:{value} is not served here")
            order, paid = ORDERS[value], paid + 1
            continue
        if colon and name in METATAGS:
            test = METATAGS[name](value, body)
        elif colon and KNOWN_ELSEWHERE.fullmatch(name):
            raise QueryError("Post::SearchError", f"the metatag {name}: is not served here")
        elif body.startswith("~") or body in ("or", "and", "(", ")"):
            raise QueryError(
                "Post::SearchError", f"{body!r}: only plain lists of tags are served here"
            )
        else:
            test, paid = _tag(body), paid + 1
        tests.append(_not(test) if negated else test)
    if paid > most_tags:
        raise QueryError(
            "PostQuery::TagLimitError",
            f"You cannot search for more than {most_tags} tags at a time.",
        )
    return Query(tuple(tests), order, limit)


def _not(test: Test) -> Test:
    return lambda post: not test(post)


def _tag(pattern: str) -> Test:
    if "*" in pattern:
        glob = re.compile(fnmatch.translate(pattern.replace("[", "[[]")))
        return lambda post: any(glob.match(t) for tags in post.tags.values() for t in tags)
    return lambda post: any(pattern in tags for tags in post.tags.values())


def _number(text: str, term: str) -> int:
    if not re.fullmatch(r"-?\d{1,18}", text):
        raise QueryError("Post::SearchError", f"{term}: {text!r} is not a whole number")
    return int(text)


def _range(text: str, term: str) -> Callable[[int], bool]:
    """5  >5  >=5  <5  <=5  5..9  5..  ..9  5,7,9"""
    if "," in text:
        values = {_number(part, term) for part in text.split(",") if part}
        return lambda n: n in values
    if ".." in text:
        least, _, most = text.partition("..")
        low = _number(least, term) if least else None
        high = _number(most, term) if most else None
        return lambda n: (low is None or n >= low) and (high is None or n <= high)
    for sign, compare in COMPARISONS:
        if text.startswith(sign):
            bound = _number(text.removeprefix(sign), term)
            return lambda n: compare(n, bound)
    value = _number(text, term)
    return lambda n: n == value


COMPARISONS: tuple[tuple[str, Callable[[int, int], bool]], ...] = (
    (">=", lambda n, bound: n >= bound),
    ("<=", lambda n, bound: n <= bound),
    (">", lambda n, bound: n > bound),
    ("<", lambda n, bound: n < bound),
)


def _numeric(of: Callable[[Post], int]) -> Callable[[str, str], Test]:
    def test(text: str, term: str) -> Test:
        within = _range(text, term)
        return lambda post: within(of(post))

    return test


def _rating(text: str, term: str) -> Test:
    letters = {part[:1] for part in text.split(",")}
    if not letters <= set("gsqe"):
        raise QueryError("Post::SearchError", f"{term}: ratings are g, s, q and e")
    return lambda post: post.rating in letters


def _filetype(text: str, term: str) -> Test:
    extensions = {"jpg" if part == "jpeg" else part for part in text.split(",")}
    return lambda post: post.extension in extensions


def _md5(text: str, term: str) -> Test:
    digests = set(text.split(","))
    return lambda post: post.is_visible and post.md5 in digests


STATUSES: dict[str, Test] = {
    "active": lambda post: not post.is_deleted and post.is_visible,
    "deleted": lambda post: post.is_deleted,
    "banned": lambda post: not post.is_visible,
    "pending": lambda post: False,
    "flagged": lambda post: False,
    "any": lambda post: True,
    "all": lambda post: True,
}


def _status(text: str, term: str) -> Test:
    if text not in STATUSES:
        raise QueryError("Post::SearchError", f"{term}: statuses are {', '.join(STATUSES)}")
    return STATUSES[text]


METATAGS: dict[str, Callable[[str, str], Test]] = {
    "rating": _rating,
    "status": _status,
    "filetype": _filetype,
    "md5": _md5,
    "id": _numeric(lambda post: post.id),
    "score": _numeric(lambda post: post.score),
    "width": _numeric(lambda post: post.size.width),
    "height": _numeric(lambda post: post.size.height),
    "filesize": _numeric(lambda post: post.bytes),
    "tagcount": _numeric(lambda post: sum(len(tags) for tags in post.tags.values())),
}
"""The free ones. Each takes the value and the whole term, for its error."""
