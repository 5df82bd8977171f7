"""Which pictures belong together, so that none of them tells of another across a held-out split.

Near-duplicates, variants of one post, and pictures by one artist; but an artist of much of the
dataset binds nothing, or a style would have no held-out pictures at all. Pure.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.artefacts.records import ImageRecord
from pipeline.artefacts.same import Same

ARTIST = "artist"
MOST_OF_AN_ARTIST = 0.05
"""Share of a dataset's pictures: an artist of more is what it is about, and binds none at all."""


def grouped(
    datasets: Sequence[Iterable[ImageRecord]],
    alike: Iterable[Sequence[str]],
    md5s: Sequence[str],
) -> tuple[tuple[str, ...], ...]:
    """`md5s` in groups, each sorted; by their first members.

    Args:
        datasets: records of all pictures of each; a picture may be in several.
        alike: groups of md5s that look alike, wherever they are.
    """
    wanted, same = set(md5s), Same[str]()
    works: dict[str, list[str]] = {}
    kin: dict[str, list[str]] = {}
    many: set[str] = set()
    for records in datasets:
        here = [record for record in records if record.md5 in wanted]
        counts = Counter(artist for record in here for artist in record.tags.get(ARTIST, ()))
        many |= {artist for artist, n in counts.items() if n > MOST_OF_AN_ARTIST * len(here)}
        for record in here:
            for artist in record.tags.get(ARTIST, ()):
                works.setdefault(artist, []).append(record.md5)
            for post in record.kin:
                kin.setdefault(post, []).append(record.md5)
    few = [by for artist, by in works.items() if artist not in many]
    near = ([md5 for md5 in group if md5 in wanted] for group in alike)
    for group in (*few, *kin.values(), *near):
        for md5 in group[1:]:
            same.join(group[0], md5)
    groups: dict[str, list[str]] = {}
    for md5 in sorted(wanted):
        groups.setdefault(same.first(md5), []).append(md5)
    return tuple(tuple(group) for group in groups.values())
