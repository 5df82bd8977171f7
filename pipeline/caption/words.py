"""A picture's score, rating and year into the words that a caption says for them."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from pipeline.artefacts.records import ImageRecord
from pipeline.recipe.caption import Caption
from pipeline.recipe.quality import LOWEST, Cuts, Percentiles, Within

Group = tuple[str, ...]
"""What pictures have in common: values of as many of `Percentiles.within` as are asked for."""


@dataclass(frozen=True)
class Words:
    """A recipe's words, and the scores of the whole dataset that percentiles are ranks among."""

    caption: Caption
    scores: dict[Group, list[int]]
    """Sorted, by group; empty where cuts are absolute."""

    def quality(self, image: ImageRecord, score: int | None) -> str:
        """The word that `score`, the picture's usable one, earns among those of pictures like it;
        "" for none."""
        if score is None:
            return ""
        scale = self.caption.scale
        if isinstance(scale, Percentiles):
            percentile = self._percentile(score, image, scale)
            return next((word.strip() for least, word in scale.words if percentile >= least), "")
        return quality_word(score, scale)

    def rating(self, image: ImageRecord) -> str:
        """The word for its rating, "" for none. Sites write "general" or "g"."""
        letter = image.rating[:1].lower()
        words = self.caption.rating_words.items()
        return next((word for rating, word in words if rating[0] == letter), "")

    def year(self, image: ImageRecord) -> str:
        """The word for the year of its post, "" for none."""
        year = _year(image)
        if not year:
            return ""
        return next((word for first, word in self.caption.year_words if int(year) >= first), "")

    def _percentile(self, score: int, image: ImageRecord, scale: Percentiles) -> float:
        """Of 100 pictures like this one, how many have a lower score."""
        for size in range(len(scale.within), -1, -1):
            among = self.scores.get(_group(image, scale.within[:size]), [])
            if len(among) >= scale.least or size == 0:
                return 100 * bisect_left(among, score) / max(1, len(among))
        raise AssertionError("the last group holds every picture")


def compile_words(caption: Caption, images: Iterable[ImageRecord]) -> Words:
    """The words for a dataset's pictures, all of which are needed for ranks."""
    scores: dict[Group, list[int]] = defaultdict(list)
    scale = caption.scale
    if isinstance(scale, Percentiles):
        for image in images:
            score = usable_score(image, caption)
            if score is not None:
                for size in range(len(scale.within) + 1):
                    scores[_group(image, scale.within[:size])].append(score)
    return Words(caption, {group: sorted(found) for group, found in scores.items()})


def quality_word(score: int, cuts: Cuts) -> str:
    """The first word whose least score is reached; "" for none."""
    return next((word.strip() for least, word in cuts if score >= least), "")


def quality_words(caption: Caption) -> dict[str, str]:
    """Every word that a score can earn, the best first, and what it asks, for a person."""
    scale = caption.scale
    if isinstance(scale, Percentiles):
        group = " of its ".join(["better than {} %", ", ".join(scale.within)])
        among = group if scale.within else "better than {} %"
        return {word.strip(): among.format(f"{least:g}") for least, word in scale.words}
    return {word.strip(): _asked(least) for least, word in scale}


def _asked(least: int) -> str:
    return "any score" if least == LOWEST else f"score {least:,} and up"


def usable_score(image: ImageRecord, caption: Caption) -> int | None:
    """The score, unless it was read too soon after the post was made to mean anything."""
    if image.score is None or is_young(image, caption.score_age_hours):
        return None
    return image.score


def is_young(image: ImageRecord, hours: float) -> bool:
    """Whether the score was read less than `hours` after the post; False where that is unknown."""
    if not image.created_at or not image.scored_at:
        return False
    age = datetime.fromisoformat(image.scored_at) - datetime.fromisoformat(image.created_at)
    return age.total_seconds() < 3600 * hours


def _group(image: ImageRecord, within: tuple[Within, ...]) -> Group:
    site = image.source.partition(":")[0]
    values = {"site": site, "rating": image.rating[:1].lower(), "year": _year(image)}
    return tuple(values[name] for name in within)


def _year(image: ImageRecord) -> str:
    return image.created_at[:4]
