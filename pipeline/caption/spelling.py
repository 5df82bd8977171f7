"""How tags are spelled: as words for a caption, and as bare tokens to compare them by.

A booru writes `long_hair`, a person `Long hair`; both are the caption text `long hair` and the
tokens " long hair ". Kaomoji keep their underscores, because there they are eyes and mouths.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

# fmt: off
KAOMOJI = frozenset((
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9",
    ">_o", "@_@", "^_^", "o_o", "u_u", "x_x", "|_|", "||_||",
))
# fmt: on
"""The list that WD taggers ship with."""

_WORD = re.compile(r"[A-Za-z]{2}")
_TOKEN = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Spelling:
    """One tag, spelled for each of the questions that rules ask of it."""

    text: str
    """As a caption says it. Parentheses stay as they are: backslashes belong to prompt syntax, not
    to training captions."""
    same: str
    """What two spellings of one tag have in common: width, case, underscores and spaces ignored."""
    tokens: str
    """The runs of letters and digits, case-folded, each between spaces: `Foo-bar_(baz)` is
    " foo bar baz ". So one tag contains another as whole tokens where one string contains the
    other. "" where there are none."""


@lru_cache(maxsize=1 << 17)
def spell(tag: str) -> Spelling:
    """The spellings of `tag`, which recurs in thousands of pictures and is spelled out once."""
    folded = unicodedata.normalize("NFKC", tag).casefold()
    words = tag if is_kaomoji(tag.strip()) else tag.replace("_", " ")
    found = _TOKEN.findall(folded)
    return Spelling(
        text=" ".join(words.split()),
        same=" ".join(folded.replace("_", " ").split()),
        tokens=f" {' '.join(found)} " if found else "",
    )


def is_kaomoji(tag: str) -> bool:
    """Whether the underscores of `tag` belong to a face: it is listed, or ASCII without any word.

    A word is two ASCII letters in a row, so `t_t` and `;_;` are faces, and `x_men` is not.
    """
    return tag in KAOMOJI or (tag.isascii() and not _WORD.search(tag))
