"""What a dataset's captions say, in numbers: a look before days of training.

urushi caption RECIPE --stats
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from pipeline.caption.rules import Written
from pipeline.caption.spelling import spell

MOST = 30
TOGETHER = 0.5
"""Share of the rarer tag's pictures that also have the other, from which the two are near-synonyms
if they share a word."""
RARE = 3
"""Pictures; what is rarer says nothing about what stands together."""


@dataclass(frozen=True)
class NearSynonyms:
    """Two tags that share a word and stand together: what one learns bleeds into the other."""

    tags: tuple[str, str]
    """The rarer one first."""
    pictures: int
    """That have both."""
    share: float
    """Of the rarer one's pictures."""


@dataclass(frozen=True)
class Statistics:
    captions: int
    tags: Counter[str]
    """In how many captions each stands."""
    lengths: tuple[int, float, int]
    """Tags in a caption: fewest, median, most."""
    near_synonyms: tuple[NearSynonyms, ...]
    dropped: Counter[tuple[str, str]]
    """(tag, why) and how often."""


def statistics(written: Iterable[Written]) -> Statistics:
    """Counts over captions; of an empty dataset, zeros."""
    said: list[tuple[str, ...]] = []
    dropped: Counter[tuple[str, str]] = Counter()
    for one in written:
        said.append(
            tuple(dict.fromkeys(one.record.caption.split(", "))) if one.record.caption else ()
        )
        dropped.update(one.dropped)
    tags = Counter(tag for caption in said for tag in caption)
    lengths = [len(caption) for caption in said] or [0]
    return Statistics(
        captions=len(said),
        tags=tags,
        lengths=(min(lengths), median(lengths), max(lengths)),
        near_synonyms=_near_synonyms(said, tags),
        dropped=dropped,
    )


def _near_synonyms(said: Iterable[tuple[str, ...]], tags: Counter[str]) -> tuple[NearSynonyms, ...]:
    words = {tag: set(spell(tag).tokens.split()) for tag, count in tags.items() if count >= RARE}
    by_word: dict[str, set[str]] = defaultdict(set)
    for tag, tokens in words.items():
        for token in tokens:
            by_word[token].add(tag)
    shared = {tag for group in by_word.values() if len(group) > 1 for tag in group}
    together: Counter[tuple[str, str]] = Counter()
    for caption in said:
        candidates = sorted(tag for tag in caption if tag in shared)
        together.update(
            pair for pair in combinations(candidates, 2) if words[pair[0]] & words[pair[1]]
        )
    found = []
    for pair, count in together.items():
        first, second = sorted(pair, key=lambda tag: (tags[tag], tag))
        if count >= RARE and count / tags[first] >= TOGETHER:
            found.append(NearSynonyms((first, second), count, count / tags[first]))
    found.sort(key=lambda near: (-near.pictures, near.tags))
    return tuple(found[:MOST])
