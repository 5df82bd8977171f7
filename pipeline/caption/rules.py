"""Tags and a score into caption text: pure rules, in a fixed order.

drop   artists (by category, and where another tag names one), categories, names
spell  underscores to spaces, but for kaomoji
order  counts, characters, series, the rest; each as the site orders it
end    the quality word that the score earns
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pipeline.artefacts.records import CaptionRecord, ImageRecord
from pipeline.caption.artists import is_style_tag, known_artists, leaks, names_one_of
from pipeline.caption.spelling import Spelling, spell
from pipeline.recipe.dataset import Caption

Why = Literal["artist", "names an artist", "category", "name", "duplicate", "empty"]

_NUMBER = re.compile(r"\d+\+?(girl|boy|other|figure)s?")
_COUNT_WORD = re.compile(r"multiple[ _](girl|boy|other|figure)s|solo|no[ _]humans", re.IGNORECASE)
_RANKS = {"character": 2, "copyright": 3}
_REST = 4


@dataclass(frozen=True)
class Rules:
    """A recipe's [caption] and what must be known of the whole dataset to obey it."""

    quality: tuple[tuple[int, str], ...]
    drop_categories: frozenset[str]
    drop_names: frozenset[str]
    """As `Spelling.same`."""
    naming_artists: frozenset[str]
    """Tags of the dataset that name one of its artists, or say in whose style a picture is."""


@dataclass(frozen=True)
class Written:
    """One caption and how it came about."""

    record: CaptionRecord
    word: str
    """The quality word; "" where the score earned none."""
    dropped: tuple[tuple[str, Why], ...]
    """(tag, reason) in the order of the tags."""


def compile_rules(caption: Caption, images: Iterable[ImageRecord], *, from_booru: bool) -> Rules:
    """The rules for a dataset. Artists are dropped whether or not `drop_categories` lists them.

    Style tags are dropped `from_booru` only: a folder's tags are its owner's own words.
    """
    artist_names: set[str] = set()
    others: set[str] = set()
    for image in images:
        for category, tags in image.tags.items():
            (artist_names if category == "artist" else others).update(tags)
    artists = known_artists(artist_names)
    return Rules(
        quality=caption.quality,
        drop_categories=frozenset(caption.drop_categories) | {"artist"},
        drop_names=frozenset(spell(tag).same for tag in caption.drop_tags),
        naming_artists=frozenset(
            tag for tag in others if leaks(tag, artists) or (from_booru and is_style_tag(tag))
        ),
    )


def artists_can_be_told(images: Iterable[ImageRecord]) -> bool:
    """Whether a booru's tags came with categories; without them an artist is just a tag."""
    return {category for image in images for category in image.tags} != {"general"}


def write_caption(image: ImageRecord, rules: Rules) -> Written:
    """The caption of `image`: elements joined by ", ", the quality word last."""
    word = quality_word(image.score, rules.quality)
    own_artists = image.tags.get("artist", ())
    dropped: list[tuple[str, Why]] = []
    kept: list[tuple[int, str]] = []
    # The quality word counts as said already: a tag that repeats it would take it from its place.
    said = {spell(word).same} if word else set()
    for category, tags in image.tags.items():
        for tag in tags:
            spelled = spell(tag)
            why = _why_dropped(tag, spelled, category, own_artists, rules)
            if why is None and not spelled.text:
                why = "empty"
            if why is None and spelled.same in said:
                why = "duplicate"
            if why is not None:
                dropped.append((tag, why))
                continue
            said.add(spelled.same)
            kept.append((_rank(tag, category), spelled.text))
    kept.sort(key=lambda element: element[0])  # Stable: the site's order stands within a rank.
    elements = [text for _, text in kept] + ([word] if word else [])
    record = CaptionRecord(md5=image.md5, caption=", ".join(elements), score=image.score)
    return Written(record, word, tuple(dropped))


def quality_word(score: int | None, quality: tuple[tuple[int, str], ...]) -> str:
    """The first word whose least score is reached; "" for none, or where there is no score."""
    if score is None:
        return ""
    return next((word.strip() for least, word in quality if score >= least), "")


def _why_dropped(
    tag: str, spelled: Spelling, category: str, own_artists: Iterable[str], rules: Rules
) -> Why | None:
    if category == "artist":
        return "artist"
    if category in rules.drop_categories:
        return "category"
    if spelled.same in rules.drop_names:
        return "name"
    if tag in rules.naming_artists or names_one_of(tag, own_artists):
        return "names an artist"
    return None


def _rank(tag: str, category: str) -> int:
    """Where an element stands: 0 and 1 for counts, then character, series, the rest."""
    if category not in _RANKS:
        if _NUMBER.fullmatch(tag):
            return 0
        if _COUNT_WORD.fullmatch(tag):
            return 1
    return _RANKS.get(category, _REST)
