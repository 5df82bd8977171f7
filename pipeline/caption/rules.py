"""Tags, score, rating and year into caption text: pure rules, in a fixed frame.

drop    artists (by category, and where another tag names one), categories, names
rules   the preset's and the recipe's own, in their order, until nothing changes
drop    once more what names an artist, lest a rule have written it
say     in the recipe's order, each once, with the words for score, rating and year
cut     whole tags, where that is more tokens than the recipe allows
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

from pipeline.artefacts.records import CaptionRecord, ImageRecord
from pipeline.caption.artists import (
    Vocabulary,
    is_style_tag,
    known_artists,
    leaks,
    names_one_of,
    naming,
    own_artists,
    vocabulary_of,
)
from pipeline.caption.spelling import spell
from pipeline.caption.tag_rules import (
    Element,
    Elements,
    Slot,
    TagRule,
    compile_tag_rules,
    matching,
    settle,
)
from pipeline.caption.tokens import Tokens
from pipeline.caption.variation import other_texts
from pipeline.caption.words import Words, compile_words, usable_score
from pipeline.recipe.caption import Caption, Variation

Why = Literal["artist", "names an artist", "category", "name", "duplicate", "empty", "no place"]
LOST = (*get_args(Why), "dropped", "collapsed", "folded", "cut")
"""What happens to a tag that the caption does not say."""

_NUMBER = re.compile(r"\d+\+?(girl|boy|other|figure)s?")
_COUNT_WORD = re.compile(r"multiple[ _](girl|boy|other|figure)s|solo|no[ _]humans", re.IGNORECASE)


Ranked = tuple[int, Element]
Said = tuple[str, str]
"""(slot, text)."""


@dataclass(frozen=True)
class Rules:
    """A recipe's [caption] and what must be known of the whole dataset to obey it."""

    caption: Caption
    words: Words
    drop_categories: frozenset[str]
    drop_names: frozenset[str]
    keep_names: frozenset[str]
    """As `Spelling.same`, both."""
    naming_artists: frozenset[str]
    """Tags of the dataset, and texts that rules write, which name one of its artists, or say in
    whose style a picture is."""
    tag_rules: tuple[TagRule, ...]
    tokens: Tokens | None
    """Counts them, where captions have a greatest length."""
    former_names: Mapping[str, tuple[str, ...]]
    """What artists were called before, by their names of today."""
    vocabulary: Vocabulary
    """What tags of the dataset say, to see at once that none of them names a picture's artist."""
    decided: dict[str, dict[str, "Why | Ranked"]] = field(
        default_factory=lambda: defaultdict(dict), repr=False
    )
    """What was found before, by category and tag; a tag recurs in thousands of pictures."""


class Change(NamedTuple):
    """What happened to one tag on its way into the caption."""

    tag: str
    what: str
    """One of LOST, "added", or the text that it was renamed to."""
    reason: str = ""


@dataclass(frozen=True)
class Written:
    """One caption and how it came about."""

    record: CaptionRecord
    word: str
    """The quality word; "" where the score earned none."""
    changes: tuple[Change, ...]
    """In the order in which they happened."""

    @property
    def dropped(self) -> tuple[tuple[str, str], ...]:
        """(tag, why) of what the caption does not say, in the order of the changes."""
        return tuple((change.tag, change.what) for change in self.changes if change.what in LOST)


def compile_rules(
    caption: Caption,
    images: Iterable[ImageRecord],
    *,
    from_booru: bool,
    former_names: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> Rules:
    """The rules for a dataset. Artists are dropped whether or not `drop_categories` lists them.

    `former_names`: what its artists were called before, which is dropped as their names of today.
    Style tags are dropped `from_booru` only: a folder's tags are its owner's own words.
    """
    images = list(images)
    # Sites rename an artist's tag and leave the old name in others: a character's, say.
    artist_names: set[str] = set(caption.artist_names)
    others: set[str] = set()
    for image in images:
        for category, tags in image.tags.items():
            (artist_names if category == "artist" else others).update(tags)
    for former in former_names.values():
        artist_names.update(former)
    artists = known_artists(artist_names)
    written = {
        spell(text).text for rule in caption.rule for text in (*rule.rename.values(), *rule.add)
    }
    known = {spell(tag).same for tag in others}
    return Rules(
        caption=caption,
        words=compile_words(caption, images),
        drop_categories=frozenset(caption.drop_categories) | {"artist"},
        drop_names=frozenset(matching(caption.drop_tags, known)),
        keep_names=frozenset(matching(caption.keep_tags, known)),
        naming_artists=frozenset(
            tag
            for tag in others | written
            if leaks(tag, artists) or (from_booru and is_style_tag(tag))
        ),
        former_names=former_names,
        vocabulary=vocabulary_of(others),
        tag_rules=compile_tag_rules(caption.rule, others),
        tokens=None if caption.tokenizer is None else Tokens(caption.tokenizer),
    )


def artists_can_be_told(images: Iterable[ImageRecord]) -> bool:
    """Whether a booru's tags came with categories; without them an artist is just a tag."""
    return {category for image in images for category in image.tags} != {"general"}


def write_caption(image: ImageRecord, rules: Rules) -> Written:
    """The caption of `image`: elements joined by ", ", in the recipe's order."""
    changes: list[Change] = []
    elements = _settled(image, rules, tuple(_allowed(image, rules, changes)), changes)
    score = usable_score(image, rules.caption)
    word = rules.words.quality(image, score)
    texts = defaultdict(
        list,
        quality=[word],
        rating=[rules.words.rating(image)],
        year=[rules.words.year(image)],
    )
    # These words count as said already: a tag that repeats one would take it from its place.
    said = {
        spell(text).same for slot in texts if slot in rules.caption.order for text in texts[slot]
    }
    said.discard("")
    places = {"added", *rules.caption.order}
    for tag, slot, text, same in elements:
        if same in said:
            changes.append(Change(tag, "duplicate"))
        elif slot not in places:
            changes.append(Change(tag, "no place"))
        else:
            said.add(same)
            texts[slot].append(text)
    slots = ("added", *rules.caption.order)
    ordered = [(slot, text) for slot in slots for text in texts[slot] if text]
    ordered, variation = _headed(ordered, rules.caption.variation)
    caption = ", ".join(text for _, text in _fitting(ordered, rules, changes))
    word = word if "quality" in rules.caption.order else ""
    texts_besides = other_texts(caption, image.texts, image.md5, variation)
    record = CaptionRecord(md5=image.md5, caption=caption, score=score, texts=texts_besides)
    return Written(record, word, tuple(changes))


def _headed(ordered: list[Said], variation: Variation) -> tuple[list[Said], Variation]:
    """What is said without the separator, and a variation that keeps what stands before it."""
    texts = [text for _, text in ordered]
    if variation.separator not in texts:
        return ordered, variation
    head = texts.index(variation.separator)
    keep = max(variation.keep, head)
    return ordered[:head] + ordered[head + 1 :], variation.model_copy(update={"keep": keep})


def _fitting(ordered: Sequence[Said], rules: Rules, changes: list[Change]) -> Sequence[Said]:
    """What is said within the most tokens; ordinary tags go first, from the end."""
    most = rules.caption.max_tokens
    if rules.tokens is None or most is None:
        return ordered
    left = list(ordered)
    while left and rules.tokens.of([text for _, text in left]) > most:
        ordinary = [place for place, (slot, _) in enumerate(left) if slot == "rest"]
        _, text = left.pop(ordinary[-1] if ordinary else -1)
        changes.append(Change(text, "cut", f"over {most} tokens"))
    return left


def _allowed(image: ImageRecord, rules: Rules, changes: list[Change]) -> Iterator[Element]:
    """The tags that neither name an artist nor are dropped by category or name; counts first."""
    its_artists = naming(image.tags, rules.vocabulary, rules.former_names)
    ranked: list[Ranked] = []
    for category, tags in image.tags.items():
        decided = rules.decided[category]
        for tag in tags:
            found = decided.get(tag)
            if found is None:
                found = decided[tag] = _decided(tag, category, rules)
            if isinstance(found, str):
                changes.append(Change(tag, found))
            elif tag in its_artists:
                changes.append(Change(tag, "names an artist"))
            else:
                ranked.append(found)
    # Stable: the site's order stands within a rank, and so does whichever was said first.
    return (element for _, element in sorted(ranked, key=_rank))


_rank = itemgetter(0)


def _settled(
    image: ImageRecord, rules: Rules, elements: Elements, changes: list[Change]
) -> Elements:
    if not rules.tag_rules:
        return elements
    told: dict[tuple[str, str], Change] = {}

    def tell(element: Element, what: str, reason: str) -> None:
        told.setdefault((element.tag, what), Change(element.tag, what, reason))

    settled = settle(elements, rules.tag_rules, tell)
    if settled is elements:
        return elements
    changes.extend(told.values())
    before = {element.same for element in elements}
    own = own_artists(image.tags, rules.former_names)
    kept = []
    for element in settled:
        if element.same not in before and (
            element.text in rules.naming_artists or names_one_of(element.text, own)
        ):
            changes.append(Change(element.tag, "names an artist"))
        else:
            kept.append(element)
    return tuple(kept)


def _decided(tag: str, category: str, rules: Rules) -> "Why | Ranked":
    """Why no caption says `tag`, or its element and where that stands."""
    spelled = spell(tag)
    if category == "artist":
        return "artist"
    if category in rules.drop_categories and spelled.same not in rules.keep_names:
        return "category"
    if spelled.same in rules.drop_names:
        return "name"
    if tag in rules.naming_artists:
        return "names an artist"
    if not spelled.text:
        return "empty"
    rank, slot = _slot(tag, category)
    return rank, Element(tag, slot, spelled.text, spelled.same)


def _slot(tag: str, category: str) -> tuple[int, Slot]:
    """Where an element stands: numbers before words among the counts."""
    if category == "character":
        return 2, "character"
    if category == "copyright":
        return 3, "series"
    if _NUMBER.fullmatch(tag):
        return 0, "count"
    return (1, "count") if _COUNT_WORD.fullmatch(tag) else (4, "rest")
