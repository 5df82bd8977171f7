from collections import Counter
from collections.abc import Callable
from itertools import permutations

import pytest
from pydantic import ValidationError

from pipeline.artefacts.records import ImageRecord
from pipeline.caption.rules import compile_rules, write_caption
from pipeline.caption.variation import other_texts, parted, varied
from pipeline.recipe.caption import Caption, Variation

TAGS = ["1girl", "halo", "sky", "sea", "cat"]


def test_without_variation_there_is_one_text() -> None:
    assert other_texts("a, b", (), "0" * 32, Variation()) == ()
    # More texts are asked for, but nothing that would make them differ.
    assert other_texts("a, b", (), "0" * 32, Variation(count=4)) == ()


def test_shuffling_keeps_the_head_and_every_tag() -> None:
    asked = Variation(count=8, shuffle=True, keep=2)
    texts = other_texts(", ".join(TAGS), (), "a" * 32, asked)
    assert 1 <= len(texts) <= 5  # Three tags stand in 6 ways, one of them the caption's own.
    for text in texts:
        elements = text.split(", ")
        assert elements[:2] == TAGS[:2] and sorted(elements) == sorted(TAGS)


def test_every_order_is_as_likely_as_another() -> None:
    asked = Variation(count=2, shuffle=True)
    found = Counter(tuple(varied(["a", "b", "c"], f"{n:032x}", 1, asked)) for n in range(6000))
    assert set(found) == set(permutations("abc"))
    # Binomial, n = 6000, p = 1/6: the standard deviation is 28.9.
    assert all(abs(count - 1000) < 5 * 28.9 for count in found.values())


def test_dropout_takes_its_share_and_never_the_head() -> None:
    asked = Variation(count=2, tag_dropout=0.25, keep=1)
    kept = [varied(TAGS, f"{n:032x}", 1, asked) for n in range(2000)]
    assert all(one[0] == "1girl" for one in kept)
    left = sum(len(one) - 1 for one in kept) / (4 * 2000)
    assert abs(left - 0.75) < 0.03
    # Order stands where nothing is shuffled.
    assert all(one == [tag for tag in TAGS if tag in one] for one in kept)


def test_a_text_depends_on_seed_picture_and_number_alone() -> None:
    tags = [f"tag {n}" for n in range(20)]
    asked = Variation(count=2, shuffle=True)
    first = varied(tags, "a" * 32, 1, asked)
    assert varied(tags, "a" * 32, 1, asked.model_copy(update={"count": 9})) == first
    other = asked.model_copy(update={"seed": 1})
    rest = [varied(tags, "a" * 32, 2, asked), varied(tags, "b" * 32, 1, asked)]
    assert all(one != first for one in [*rest, varied(tags, "a" * 32, 1, other)])


def test_own_texts_come_first_and_are_not_shuffled() -> None:
    asked = Variation(count=3, shuffle=True)
    own = ("A girl, who looks at the sea.", "sea, halo")
    texts = other_texts("sea, halo", own, "a" * 32, asked)
    assert texts[0] == own[0] and "sea, halo" not in texts


def test_a_caption_record_carries_its_texts() -> None:
    image = ImageRecord(
        md5="a" * 32,
        path="a.png",
        width=1,
        height=1,
        tags={"general": ("1girl", "sky", "sea", "cat"), "artist": ("some_painter",)},
        score=None,
        rating="general",
        source="x",
        texts=("A cat by the sea.",),
    )
    caption = Caption.model_validate({"variation": {"count": 4, "shuffle": True, "keep": 1}})
    record = write_caption(image, compile_rules(caption, [image], from_booru=True)).record
    assert record.caption == "1girl, sky, sea, cat"
    assert record.texts[0] == "A cat by the sea." and len(record.texts) > 1
    for text in record.texts[1:]:
        assert text.startswith("1girl, ") and sorted(text.split(", ")) == [
            "1girl",
            "cat",
            "sea",
            "sky",
        ]


def test_what_stands_before_the_separator_is_kept(image: Callable[..., ImageRecord]) -> None:
    """As captions for kohya's scripts are written: the separator between two commas, or not."""
    section = {"variation": {"count": 6, "shuffle": True, "tag_dropout": 0.5, "separator": "|||"}}
    caption = Caption.model_validate(section)
    tags = ("ohara mari", "halo ||| sky", "sea", "cat")
    pictures = [parted(image(general=tags), "|||"), image(general=("halo", "sky"))]
    rules = compile_rules(caption, pictures, from_booru=False)
    record, without = (write_caption(picture, rules).record for picture in pictures)
    assert record.caption == "ohara mari, halo, sky, sea, cat, high quality"
    assert len(record.texts) > 1 and all("|||" not in text for text in record.texts)
    assert all(text.startswith("ohara mari, halo") for text in record.texts)
    assert any("sky" not in text for text in record.texts)
    assert without.caption == "halo, sky, high quality"


def test_a_separator_is_one_word_without_a_comma() -> None:
    for separator in ("", "a, b", "| |"):
        with pytest.raises(ValidationError, match="separator"):
            Variation(count=2, separator=separator)
