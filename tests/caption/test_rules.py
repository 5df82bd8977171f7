"""Hand-worked captions, and the one thing that must never happen: an artist's name in one."""

import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.artefacts.records import ImageRecord
from pipeline.caption.rules import (
    artists_can_be_told,
    compile_rules,
    write_caption,
)
from pipeline.recipe.caption import Caption

Make = Callable[..., ImageRecord]


def caption_of(
    record: ImageRecord, *others: ImageRecord, booru: bool = True, **rules: object
) -> str:
    compiled = compile_rules(Caption.model_validate(rules), (record, *others), from_booru=booru)
    return write_caption(record, compiled).record.caption


def test_a_whole_post(image: Make) -> None:
    post = image(
        score=60,
        general=("^_^", "blue_hair", "1girl", "halo", "solo", "holding_gun"),
        artist=("john_doe",),
        copyright=("blue_archive",),
        character=("hoshino_(swimsuit)_(blue_archive)", "hoshino_(blue_archive)"),
        meta=("highres", "commentary_request"),
    )
    assert caption_of(post) == (
        "1girl, solo, hoshino (swimsuit) (blue archive), hoshino (blue archive), blue archive, "
        "^_^, blue hair, halo, holding gun, masterpiece"
    )


def test_the_score_is_recorded_and_everything_dropped_has_a_reason(image: Make) -> None:
    post = image(
        score=-3,
        general=("smile", "Smile", "bad_tag", "drawn_by_john_doe", "_ _"),
        artist=("john_doe",),
        meta=("highres",),
    )
    rules = compile_rules(Caption(drop_tags=("bad tag",)), [post], from_booru=True)
    written = write_caption(post, rules)
    assert written.record.caption == "smile, _ _"
    assert written.record.score == -3
    assert written.word == ""
    assert written.dropped == (
        ("bad_tag", "name"),
        ("drawn_by_john_doe", "names an artist"),
        ("john_doe", "artist"),
        ("highres", "category"),
        ("Smile", "duplicate"),
    )


@pytest.mark.parametrize(
    ("score", "word"),
    [
        (1000, "masterpiece"),
        (60, "masterpiece"),
        (59, "best quality"),
        (18, "best quality"),
        (17, "high quality"),
        (6, "high quality"),
        (5, ""),
        (-20, ""),
        (None, ""),
    ],
)
def test_quality_words_by_the_default_cuts(image: Make, score: int | None, word: str) -> None:
    post = image(score=score, general=("halo",))
    assert write_caption(post, compile_rules(Caption(), [post], from_booru=True)).word == word


@pytest.mark.parametrize(
    ("general", "caption"),
    [
        (("solo", "halo", "1girl"), "1girl, solo, halo"),
        (("6+girls", "multiple_girls", "1boy"), "6+girls, 1boy, multiple girls"),
        (
            ("blue_star", "3figures", "1figure", "no_humans"),
            "3figures, 1figure, no humans, blue star",
        ),
        (("wide_shot", "1other", "multiple_views"), "1other, wide shot, multiple views"),
        (("solo_focus", "2girls"), "2girls, solo focus"),
        (("1girls_day", "multiple_boys"), "multiple boys, 1girls day"),
    ],
)
def test_counts_come_first(image: Make, general: tuple[str, ...], caption: str) -> None:
    assert caption_of(image(score=None, general=general)) == caption


def test_a_character_called_like_a_count_stays_a_character(image: Make) -> None:
    post = image(score=None, general=("1girl",), copyright=("solo",), character=("2girls",))
    assert caption_of(post) == "1girl, 2girls, solo"


def test_the_quality_word_comes_last_even_where_a_tag_says_it(image: Make) -> None:
    assert caption_of(image(score=99, general=("Masterpiece", "halo"))) == "halo, masterpiece"


def test_no_tags_leave_the_quality_word_or_nothing(image: Make) -> None:
    assert caption_of(image(score=20)) == "best quality"
    assert caption_of(image(score=None)) == ""
    assert caption_of(image(score=0, artist=("john_doe",), meta=("highres",))) == ""


def test_dropping_obeys_categories_and_every_spelling_of_a_name(image: Make) -> None:
    post = image(score=None, general=("Wide_Shot", "halo"), character=("arona",), meta=("scan",))
    assert caption_of(post, drop_categories=["character"]) == "Wide Shot, halo, scan"
    assert caption_of(post, drop_tags=["wide shot", "HALO"]) == "arona"


def test_artists_go_even_where_the_recipe_does_not_list_them(image: Make) -> None:
    post = image(score=None, general=("halo",), artist=("john_doe",), meta=("scan",))
    assert caption_of(post, drop_categories=[]) == "halo, scan"


@pytest.mark.parametrize(
    "leak",
    [
        "john_doe",
        "John Doe",
        "john-doe",
        "john_doe_(style)",
        "someone_else_(style)",
        "style_parody",
        "art_style_parody",
        "drawn_by_john_doe",
        "john_doe's_oc",
        "\uff4aohn_doe",
    ],
)
def test_no_other_tag_names_the_artist(image: Make, leak: str) -> None:
    post = image(
        score=None,
        general=("halo", leak),
        character=(leak,),
        copyright=(leak,),
        artist=("john_doe",),
    )
    assert caption_of(post) == "halo"


@pytest.mark.parametrize(
    "innocent", ["john", "doe_eyes", "johnny_doe", "official_style", "johndoe"]
)
def test_likeness_is_not_a_name(image: Make, innocent: str) -> None:
    post = image(score=None, general=(innocent,), artist=("john_doe",))
    assert caption_of(post) == innocent.replace("_", " ")


def test_another_pictures_artist_is_kept_out_too(image: Make) -> None:
    theirs = image(2, artist=("john_doe", "kintaro", "ask_(askzy)", "^^^"))
    leaks = (
        "drawn_by_john_doe",
        "kintaro",
        "art_by_kintaro",
        "kintaro_style",
        "ask_(askzy)",
        "^^^",
    )
    mine = image(1, score=None, general=("halo", *leaks))
    assert caption_of(mine, theirs) == "halo"


def test_an_artists_former_name_is_an_artists_name(image: Make) -> None:
    """The site says john_doe now; the character drawn by him keeps the name of old."""
    post = image(
        score=None,
        general=("halo", "olden_times", "olden"),
        character=("mascot_(Old_Pen_Name)",),
        artist=("john_doe",),
    )
    assert caption_of(post) == "mascot (Old Pen Name), halo, olden times, olden"
    assert caption_of(post, artist_names=["old_pen_name", "olden"]) == "halo, olden times"


def test_one_artists_everyday_name_does_not_strip_everyone(image: Make) -> None:
    hair, other = image(1, artist=("hair",), general=("red_hair",)), image(2, general=("red_hair",))
    assert caption_of(other, hair, quality=[]) == "red hair"
    assert caption_of(hair, other, quality=[]) == ""


def test_a_qualified_name_is_known_without_its_qualifier_beside_telling_words(image: Make) -> None:
    post = image(score=None, general=("art_by_ask", "ask"), artist=("ask_(askzy)",))
    assert caption_of(post) == "ask"


def test_a_folders_tags_are_its_owners_words(image: Make) -> None:
    mine = image(score=None, general=("my cat", "van_gogh_(style)", "style parody"))
    assert caption_of(mine, booru=False) == "my cat, van gogh (style), style parody"


def test_tags_without_categories_hide_their_artists(image: Make) -> None:
    assert not artists_can_be_told([image(1, general=("halo", "john_doe")), image(2, general=())])
    assert artists_can_be_told([image(1, general=("halo",)), image(2, artist=("john_doe",))])
    assert artists_can_be_told([image(1, general=("halo",), artist=())])
    assert artists_can_be_told([image(1)])


def tokens(text: str) -> list[str]:
    """Said once more and otherwise than the rules say it: letters and digits, all else is space."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter if letter.isalnum() else " " for letter in plain).split()


def contains(inside: list[str], name: list[str]) -> bool:
    return any(inside[at : at + len(name)] == name for at in range(len(inside) - len(name) + 1))


WORDS = st.sampled_from(["ann", "bo", "cat", "style", "by", "rain", "7", "\u9752"])
JOINS = st.sampled_from(["_", " ", "-", "_(", ")_", "'", "__"])
NAMES = st.builds(
    lambda words, joins: "".join(w + j for w, j in zip(words, [*joins, ""], strict=False)),
    st.lists(WORDS, min_size=1, max_size=4),
    st.lists(JOINS, min_size=4, max_size=4),
).map(lambda name: name.strip("_ -'("))
TAGS = st.lists(
    st.one_of(NAMES, NAMES.map(str.upper), NAMES.map(lambda n: f"{n}_(style)")), max_size=6
)


@settings(max_examples=80, deadline=None)
@given(
    pictures=st.lists(
        st.fixed_dictionaries(
            {
                "general": TAGS,
                "character": TAGS,
                "meta": TAGS,
                "artist": st.lists(NAMES.filter(bool), max_size=2),
            }
        ),
        min_size=1,
        max_size=4,
    ),
    keep_all=st.booleans(),
)
def test_no_artists_name_ever_occurs(pictures: list[dict[str, list[str]]], keep_all: bool) -> None:
    records = [
        ImageRecord(
            md5=f"{number:032x}",
            path="",
            width=0,
            height=0,
            tags={category: tuple(tags) for category, tags in picture.items()},
            score=None,
            rating="general",
            source="",
        )
        for number, picture in enumerate(pictures)
    ]
    caption = Caption(drop_categories=()) if keep_all else Caption()
    rules = compile_rules(caption, records, from_booru=True)
    everyone = [tokens(name) for picture in pictures for name in picture["artist"]]
    for record in records:
        text = write_caption(record, rules).record.caption
        elements = [tokens(element) for element in text.split(", ")]
        own = [tokens(name) for name in record.tags["artist"]]
        for element in elements:
            assert not any(contains(element, name) for name in own)
            assert element not in everyone
            assert not any(contains(element, name) for name in everyone if len(name) > 1)
        assert len(set(text.split(", "))) == len(text.split(", "))


def test_what_an_artist_was_called_before_is_not_said(image: Make) -> None:
    post = image(
        general=("smile", "kettle", "drawn_by_red_lamp"),
        character=("fox_(old_lantern)",),
        artist=("red_lantern",),
    )
    other = image(2, general=("kettle", "fox_(red_lamp)"), artist=("someone_else",))
    former = {"red_lantern": ("old_lantern", "red_lamp", "kettle")}
    plain = compile_rules(Caption(quality=()), [post, other], from_booru=True)
    told = compile_rules(Caption(quality=()), [post, other], from_booru=True, former_names=former)
    before = "fox (old lantern), smile, kettle, drawn by red lamp"
    assert write_caption(post, plain).record.caption == before
    assert write_caption(post, told).record.caption == "smile"
    assert write_caption(other, plain).record.caption == "kettle, fox (red lamp)"
    assert "red lamp" not in write_caption(other, told).record.caption
    rule = {"rename": {"smile": "by red lamp"}}
    written = Caption.model_validate({"quality": (), "rule": [rule]})
    renamed = compile_rules(written, [post, other], from_booru=True, former_names=former)
    assert write_caption(post, renamed).record.caption == ""
