"""Words for score, rating and year: cuts, ranks among comparable pictures, and young scores."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.artefacts.records import ImageRecord
from pipeline.caption.rules import compile_rules, write_caption
from pipeline.caption.words import compile_words, quality_words, usable_score
from pipeline.recipe.caption import Caption

Make = Callable[..., ImageRecord]


def posts(make: Make, scores: range, **more: Any) -> list[ImageRecord]:
    start = more.pop("start", 0)
    made = [make(start + n, score=score, general=("halo",)) for n, score in enumerate(scores)]
    return [post.model_copy(update=more) for post in made]


def words_of(section: dict[str, Any], images: list[ImageRecord]) -> list[str]:
    caption = Caption.model_validate(section)
    words = compile_words(caption, images)
    return [words.quality(image, usable_score(image, caption)) for image in images]


@pytest.mark.parametrize(
    ("scheme", "score", "word"),
    [
        ("urushi", 60, "masterpiece"),
        ("urushi", 5, ""),
        ("animagine-3.0", 151, "masterpiece"),
        ("animagine-3.0", 150, "best quality"),
        ("animagine-3.0", 99, "high quality"),
        ("animagine-3.0", 25, "medium quality"),
        ("animagine-3.0", 0, "normal quality"),
        ("animagine-3.0", -5, "low quality"),
        ("animagine-3.0", -6, "worst quality"),
    ],
)
def test_named_cuts(image: Make, scheme: str, score: int, word: str) -> None:
    assert words_of({"quality": scheme}, [image(score=score)]) == [word]


def test_percentiles_are_ranks_not_scores(image: Make) -> None:
    """100 posts of scores 0, 10, … 990: a score's percentile is its place."""
    words = words_of({"quality": "animagine-3.1"}, posts(image, range(0, 1000, 10)))
    assert words.count("masterpiece") == 5 and set(words[95:]) == {"masterpiece"}
    assert words[94] == "best quality" and words[85] == "best quality"
    assert (words[84], words[74], words[49], words[24]) == (
        *("great quality", "good quality", "normal quality", "low quality"),
    )
    assert words[0] == "worst quality" and words.count("worst quality") == 10


def test_ties_share_the_lower_rank(image: Make) -> None:
    """Where half of all have the same score, none of them is better than half."""
    section = {"quality": {"words": [[50, "good"], [0, "bad"]], "least": 1}}
    assert words_of(section, [image(n, score=s) for n, s in enumerate((1, 1, 1, 9))]) == [
        *("bad", "bad", "bad", "good"),
    ]


def test_pictures_are_ranked_among_their_like(image: Make) -> None:
    """The lowest explicit score is above every general one; each group has its own best."""
    low = posts(image, range(40), rating="general")
    high = posts(image, range(100, 140), start=100, rating="explicit")
    section = {"quality": {"words": [[90, "best"]], "within": ["rating"], "least": 30}}
    words = words_of(section, low + high)
    assert words[36:40] == ["best"] * 4 and words[76:80] == ["best"] * 4
    assert words.count("best") == 8
    # Too few of a kind: both are ranked among all 80.
    section["quality"]["least"] = 41  # type: ignore[index]
    assert words_of(section, low + high) == [""] * 72 + ["best"] * 8


def test_a_year_is_left_out_first(image: Make) -> None:
    old = posts(image, range(40), created_at="2010-01-01T00:00:00+00:00")
    new = posts(image, range(50, 55), start=90, created_at="2024-01-01T00:00:00+00:00")
    section = {"quality": {"words": [[85, "best"]], "within": ["site", "year"], "least": 30}}
    words = words_of(section, old + new)
    assert words[:40] == [""] * 34 + ["best"] * 6  # Among the 40 of its year.
    assert words[40:] == ["best"] * 5  # Five are too few, so among all 45 of the site.


@pytest.mark.parametrize(
    ("posted", "read", "used"),
    [
        ("2026-01-01T00:00:00+00:00", "2026-01-03T23:59:00+00:00", False),
        ("2026-01-01T00:00:00+00:00", "2026-01-04T00:00:00+00:00", True),
        ("2026-01-01T00:00:00-05:00", "2026-01-04T00:00:00+00:00", False),
        ("", "2026-01-04T00:00:00+00:00", True),
        ("2026-01-01T00:00:00+00:00", "", True),
    ],
)
def test_young_scores_are_not_used(image: Make, posted: str, read: str, used: bool) -> None:
    post = image(score=99, general=("halo",)).model_copy(
        update={"created_at": posted, "scored_at": read}
    )
    written = write_caption(post, compile_rules(Caption(), [post], from_booru=True))
    assert written.record.caption == ("halo, masterpiece" if used else "halo")
    assert written.record.score == (99 if used else None)


def test_rating_and_year_words_stand_where_the_order_says(image: Make) -> None:
    section = {
        "rating_words": {"general": "safe", "sensitive": "sensitive"},
        "year_words": [[2022, "newest"], [2019, "late"], [0, "oldest"]],
        "order": ["year", "rest", "rating", "quality"],
    }
    caption = Caption.model_validate(section)
    for year, rating, text in (
        ("2024", "g", "newest, halo, safe, masterpiece"),
        ("2019", "sensitive", "late, halo, sensitive, masterpiece"),
        ("2007", "explicit", "oldest, halo, masterpiece"),
    ):
        post = image(score=60, rating=rating, general=("halo",)).model_copy(
            update={"created_at": f"{year}-06-01T00:00:00+00:00"}
        )
        compiled = compile_rules(caption, [post], from_booru=True)
        assert write_caption(post, compiled).record.caption == text


@pytest.mark.parametrize(
    "section",
    [
        {"quality": [[6, "a"], [60, "b"]]},
        {"quality": {"words": [[5, "a"], [50, "b"]]}},
        {"year_words": [[2000, "old"], [2020, "new"]]},
        {"quality": "animagine"},
        {"quality": {"words": [[101, "a"]]}},
        {"order": ["rest", "rest"]},
    ],
)
def test_words_that_mean_nothing_are_refused(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Caption.model_validate(section)


def test_what_each_word_asks_is_said() -> None:
    assert quality_words(Caption()) == {
        "masterpiece": "score 60 and up",
        "best quality": "score 18 and up",
        "high quality": "score 6 and up",
    }
    said = quality_words(Caption.model_validate({"quality": "noobai"}))
    assert said["masterpiece"] == "better than 95 % of its site, rating, year"
