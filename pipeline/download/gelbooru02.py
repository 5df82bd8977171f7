"""Gelbooru 0.2's XML or JSON (safebooru.org and its kin) into posts.

Facts relied upon: the same questions as gelbooru.com's, without a key. XML is the richer form (md5
and created_at); in JSON a page is a bare list, md5 is called hash, and nothing is an empty body. An
empty page in the middle has been seen, so two are the end. Categories of tags are asked for in XML,
which is the only form that the tag list has; what it does not answer stays unknown.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from xml.etree.ElementTree import Element

from pipeline.download import fields
from pipeline.download.gelbooru import PATH, PER_PAGE, categories, read
from pipeline.download.posts import MOST_NAMES, Account, Malformed, Post, Question
from pipeline.download.terms import Search, rating_terms, split, terms_of
from pipeline.recipe.dataset import Download

MOST_TAGS = 40
WORDS = {word: word for word in ("general", "sensitive", "questionable", "explicit")}


class Gelbooru02:
    """The dialect of one site that runs Gelbooru 0.2."""

    per_page = PER_PAGE
    most_ids = 0
    most_per_second = 2.0
    empty_pages = 2
    account = Account()

    def __init__(
        self, site: str, address: str, *domains: str, form: Literal["xml", "json"] = "xml"
    ) -> None:
        self.site = site
        self.address = address
        self.domains = domains
        self._form = form

    def query(self, asked: Download) -> Search:
        terms, rest = split(terms_of(asked.tags), MOST_TAGS, lambda term: False)
        return Search(" ".join((*terms, *rating_terms(WORDS, asked.ratings, self.site))), rest)

    def page(self, query: str, cursor: int | None, floor: int | None = None) -> Question:
        below = "" if cursor is None else f"id:<{cursor}"
        least = "" if floor is None else f"id:>={floor}"
        return self._posts(tags=f"{query} {below} {least}", limit=str(PER_PAGE))

    def page_after(self, query: str, cursor: int) -> Question:
        return self._posts(tags=f"{query} id:>{cursor} sort:id:asc", limit=str(PER_PAGE))

    def by_ids(self, identifiers: Sequence[int]) -> Question:
        return self.post(identifiers[0])

    def read_page(self, content: Any) -> list[Post]:
        return [read(self.site, item) for item in _rows(content, "post")]

    def count(self, query: str) -> Question:
        return _ask("post", "xml", tags=query, limit="1")

    def read_count(self, content: Any) -> int | None:
        return fields.whole(content.attrib, "count") if isinstance(content, Element) else None

    def post(self, identifier: int) -> Question:
        return self._posts(id=str(identifier))

    def read_post(self, content: Any) -> Post | None:
        posts = self.read_page(content)
        return posts[0] if posts else None

    def tags(self, names: Sequence[str]) -> Question:
        return _ask("tag", "xml", names=" ".join(names), limit=str(MOST_NAMES))

    def read_tags(self, content: Any) -> dict[str, str]:
        return categories(_rows(content, "tag"))

    def aliases(self, names: Sequence[str]) -> None:
        return None

    def read_aliases(self, content: Any) -> list[tuple[str, str]]:
        return []

    def complaint(self, content: Any) -> str:
        if isinstance(content, Element):
            return content.get("reason") or (content.text or "").strip()
        return str(content.get("message") or "") if isinstance(content, dict) else ""

    def _posts(self, **parameters: str) -> Question:
        return _ask("post", self._form, **parameters)


def _ask(what: str, form: Literal["xml", "json"], **parameters: str) -> Question:
    if "tags" in parameters:
        parameters["tags"] = " ".join(parameters["tags"].split())
    known = {"page": "dapi", "s": what, "q": "index"}
    if form == "json":
        known["json"] = "1"
    return Question(PATH, known | parameters, form=form, may_be_empty=form == "json")


def _rows(content: Any, key: str) -> list[Mapping[str, Any]]:
    """The items of an answer in either form. Raises Malformed."""
    if isinstance(content, Element):
        if content.tag != f"{key}s":
            raise Malformed(f"an answer is <{content.tag}> and not <{key}s>")
        return [item.attrib for item in content.iter(key)]
    if not isinstance(content, list):
        raise Malformed(f"a page of {key}s is not a list")
    return content
