"""Artist names out of captions: which tags name an artist, though they are not artist tags.

Artist tags themselves go by their category. Names also leak through other tags: `john_doe_(style)`,
`drawn_by_john_doe`, a character that the artist drew into the picture. Two questions are asked:

- Of the picture's own artists: does the tag contain the name as a whole run of tokens? Then it is
  dropped, even where the name is an everyday word; that costs one tag of one picture.
- Of every artist in the dataset: the same for names of two tokens and more. A name of one token
  ("rain") must be all that the tag says but for words such as "style" and "drawn by"; otherwise one
  artist called "hair" would take the hair colour out of every caption.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.caption.spelling import spell

_STYLE = re.compile(r"(?:.*[ _])?\(style\)|(?:.*[ _])?style[ _]parody", re.IGNORECASE)
_SAID_OF_ARTISTS = frozenset(
    ("after", "art", "artist", "by", "drawn", "in", "of", "s", "style", "the")
)
_QUALIFIER = re.compile(r"[_ ]\([^()]*\)$")


@dataclass(frozen=True)
class Artists:
    """Names of artists, ready to be looked for in tags."""

    same: frozenset[str]
    """As `Spelling.same`; this finds names without a letter or digit, too."""
    tokens: frozenset[str]
    """As `Spelling.tokens`."""
    longest: int
    """Tokens of the longest name."""


@dataclass(frozen=True)
class Vocabulary:
    """What the tags of a dataset say, but for its artists'."""

    same: frozenset[str]
    """As `Spelling.same`."""
    tokens: frozenset[str]
    """The single tokens."""
    asked: dict[str, bool] = field(default_factory=dict, repr=False)

    def may_name(self, artist: str) -> bool:
        """Whether any tag could name `artist`: False for nearly all, whose names have a token that
        no tag has, so that the tags of their pictures need not be looked through."""
        answer = self.asked.get(artist)
        if answer is None:
            spelled, bare = spell(artist), _bare(artist)
            answer = self.asked[artist] = spelled.same in self.same or any(
                name and self.tokens.issuperset(name.split()) for name in (spelled.tokens, bare)
            )
        return answer


def vocabulary_of(tags: Iterable[str]) -> Vocabulary:
    """The vocabulary of `tags`, none of which is an artist's."""
    spelled = [spell(tag) for tag in tags]
    return Vocabulary(
        same=frozenset(one.same for one in spelled),
        tokens=frozenset(token for one in spelled for token in one.tokens.split()),
    )


def known_artists(names: Iterable[str]) -> Artists:
    """`names` as a site spells them, ready for `leaks`."""
    spelled = [spell(name) for name in names]
    tokens = {one.tokens for one in spelled} - {""}
    return Artists(
        same=frozenset(one.same for one in spelled),
        tokens=frozenset(tokens),
        longest=max((len(name.split()) for name in tokens), default=0),
    )


def is_style_tag(tag: str) -> bool:
    """Whether `tag` says in whose manner a picture is drawn: `*_(style)`, `style_parody`."""
    return _STYLE.fullmatch(tag.strip()) is not None


def names_one_of(tag: str, own: Iterable[str]) -> bool:
    """Whether `tag` names one of the picture's own artists.

    `ask_(askzy)` is also looked for as plain "ask", but only beside words such as "drawn by": the
    qualifier is there because something else has that name.
    """
    told = spell(tag)
    for name in own:
        artist = spell(name)
        if artist.same == told.same or (artist.tokens and artist.tokens in told.tokens):
            return True
        bare = _bare(name)
        if bare and bare in told.tokens and bare == _without_phrase(told.tokens) != told.tokens:
            return True
    return False


def own_artists(
    tags: Mapping[str, Sequence[str]], former: Mapping[str, Sequence[str]]
) -> list[str]:
    """The names of a picture's artists (its tags by category), and their `former` ones."""
    artists = tags.get("artist", ())
    return [*artists, *(name for artist in artists for name in former.get(artist, ()))]


def naming(
    tags: Mapping[str, Sequence[str]],
    vocabulary: Vocabulary,
    former: Mapping[str, Sequence[str]],
) -> frozenset[str]:
    """Those of a picture's tags (by category) that name one of its own artists.

    `vocabulary` is that of the picture's dataset; `former`: what artists were called before.
    """
    own = [name for name in own_artists(tags, former) if vocabulary.may_name(name)]
    if not own:
        return frozenset()
    return frozenset(
        tag
        for category, found in tags.items()
        if category != "artist"
        for tag in found
        if names_one_of(tag, own)
    )


def leaks(tag: str, artists: Artists) -> bool:
    """Whether `tag` names any artist of the dataset."""
    told = spell(tag)
    if told.same in artists.same or told.tokens in artists.tokens:
        return True
    if _without_phrase(told.tokens) in artists.tokens:
        return True
    words = told.tokens.split()
    return any(
        _joined(words[start:end]) in artists.tokens
        for start in range(len(words))
        for end in range(start + 2, min(start + artists.longest, len(words)) + 1)
    )


def _bare(name: str) -> str:
    """The tokens of `name` without its qualifier."""
    return spell(_QUALIFIER.sub("", name)).tokens


def _without_phrase(tokens: str) -> str:
    return _joined([token for token in tokens.split() if token not in _SAID_OF_ARTISTS])


def _joined(tokens: list[str]) -> str:
    return f" {' '.join(tokens)} " if tokens else ""
