"""A search's terms: which the site is asked, which are left to be sifted here, and ratings.

Sites limit how many tags a search may have, not how many pictures may be looked through. What does
not fit is decided here, by the tags that each post states.
"""

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import RequestError

WITHOUT_EFFECT = re.compile(r"(?:^|\s)-?(order|sort|ordfav|ordpool|limit|random):", re.IGNORECASE)
"""Terms that a crawl by id cannot obey."""
SIFTED = re.compile(r"-?[^\s:~(){}]+(?:_\([^\s:~]*\))?")
"""Terms that can be decided here: a tag, one that must be absent, or a pattern with *."""


@dataclass(frozen=True)
class Search:
    """A search in a site's own words, and what is left of it for us."""

    text: str
    rest: tuple[str, ...] = ()
    """Tags that a post must have, or with - in front must not."""

    @property
    def key(self) -> str:
        """Names the search in the store."""
        return " | ".join((self.text, *self.rest))

    def takes(self, tags: Mapping[str, Sequence[str]]) -> bool:
        """Whether a post with these tags, by category, is one of those that were asked for."""
        if not self.rest:
            return True
        names = [name.lower() for category in tags.values() for name in category]
        return all(_has(names, term.lower()) for term in self.rest)


def _has(tags: Sequence[str], term: str) -> bool:
    wanted = term.removeprefix("-")
    if "*" in wanted:
        found = bool(fnmatch.filter(tags, wanted.replace("[", "[[]").replace("?", "[?]")))
    else:
        found = wanted in tags
    return found != term.startswith("-")


def terms_of(tags: str) -> list[str]:
    """The recipe's terms.

    Raises:
        RequestError: one that asks for an order or an end of its own.
    """
    useless = WITHOUT_EFFECT.search(tags)
    if useless:
        raise RequestError(
            f"[download].tags has {useless[1]}:, which a crawl by id cannot obey. Remove it: "
            "pictures come newest first, and [download].limit says how many."
        )
    return tags.split()


def split(
    terms: Sequence[str], most: int, is_free: Callable[[str], bool]
) -> tuple[list[str], tuple[str, ...]]:
    """Terms for the site, at most `most` that count there, and the rest.

    What only the site can decide goes first, then tags before exclusions before patterns.

    Raises:
        RequestError: more than `most` that only the site can decide.
    """
    paid = [term for term in terms if not is_free(term)]
    ranked = sorted(paid, key=_rank)
    if sum(_rank(term) == 0 for term in paid) > most:
        raise RequestError(
            f"[download].tags has more than the {most} terms that the site takes, and "
            f"{', '.join(term for term in ranked if _rank(term) == 0)} cannot be sifted here. "
            "Keep fewer of them; plain tags may be as many as you like."
        )
    left = ranked[most:]
    return [term for term in terms if term not in left], tuple(left)


def _rank(term: str) -> int:
    if not SIFTED.fullmatch(term) or term.lower() in ("or", "and"):
        return 0
    return 3 if "*" in term else 2 if term.startswith("-") else 1


def rating_terms(words: Mapping[str, str], wanted: Sequence[str], site: str) -> list[str]:
    """`rating:` terms for the recipe's ratings; `words` maps each one to the site's own word.

    Raises:
        RequestError: the site has none of them.
    """
    taken = {words[rating] for rating in wanted if rating in words}
    if not taken:
        has = ", ".join(f'"{rating}"' for rating in words)
        raise RequestError(
            f"{site} has no pictures rated {' or '.join(wanted)}: its mildest rating is what this "
            f"program calls {next(iter(words))}. Look at some of them first; [download].ratings "
            f"may hold {has} there."
        )
    if taken == set(words.values()):
        return []
    if len(taken) == 1:
        return [f"rating:{taken.pop()}"]
    return [f"-rating:{word}" for word in words.values() if word not in taken]
