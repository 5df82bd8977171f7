"""A recipe's own rules and the presets: captions worked out by hand, and what none can break."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.artefacts.records import ImageRecord
from pipeline.caption.rules import compile_rules, write_caption
from pipeline.caption.spelling import spell
from pipeline.recipe.caption import PRESETS, Caption, preset_table

Make = Callable[..., ImageRecord]
Rules = list[dict[str, Any]]


def caption_of(post: ImageRecord, rules: Rules | None = None, **more: object) -> str:
    caption = Caption.model_validate({"rule": rules or [], **more})
    return write_caption(post, compile_rules(caption, [post], from_booru=True)).record.caption


GUNS = ["assault_rifle", "rifle", "gun", "weapon"]

BY_RULES: list[tuple[Rules, str, str]] = [
    # drop: by name, by pattern, spelled in any way
    ([{"drop": ["halo"]}], "halo smile", "smile"),
    ([{"drop": ["Blue Hair"]}], "blue_hair smile", "smile"),
    ([{"drop": ["*_hair"]}], "blue_hair long_hair hair_ribbon", "hair ribbon"),
    ([{"drop": ["hair_*"]}], "hair_ribbon hair_bow long_hair", "long hair"),
    ([{"drop": ["*_in_*"]}], "flower_in_hair flower", "flower"),
    ([{"drop": ["*"]}], "halo smile 1girl", ""),
    ([{"drop": ["smil"]}], "smile", "smile"),
    ([{"drop": ["^_^"]}], "^_^ smile", "smile"),
    ([{"drop": ["(o)_(o)"]}], "(o)_(o) :d", ":d"),
    ([{"drop": ["a.c"]}], "abc a.c", "abc"),
    # rename
    ([{"rename": {"aiming_at_viewer": "aav"}}], "aiming_at_viewer gun", "aav, gun"),
    ([{"rename": {"Aiming at viewer": "aav"}}], "aiming_at_viewer", "aav"),
    ([{"rename": {"smile": "a_happy_smile"}}], "smile", "a happy smile"),
    ([{"rename": {"halo": "ring"}}], "halo ring", "ring"),
    ([{"rename": {"ring": "halo"}}], "ring smile halo", "halo, smile"),
    ([{"rename": {"a": "b"}}, {"rename": {"b": "c"}}], "a", "c"),
    ([{"rename": {"b": "c"}}, {"rename": {"a": "b"}}], "a", "c"),
    ([{"rename": {"1girl": "one girl"}}], "smile 1girl", "one girl, smile"),
    # collapse
    ([{"collapse": GUNS}], "weapon gun rifle assault_rifle", "assault rifle"),
    ([{"collapse": GUNS}], "weapon smile gun", "smile, gun"),
    ([{"collapse": GUNS}], "weapon", "weapon"),
    ([{"collapse": GUNS}], "smile", "smile"),
    ([{"collapse": ["day", "night"]}], "night day", "day"),
    (
        [{"collapse": ["sit", "stand"]}, {"collapse": ["day", "night"]}],
        "stand night sit",
        "night, sit",
    ),
    # fold
    ([{"fold": ["*_hair", "halo"], "into": "aris"}], "aris blue_hair halo smile", "aris, smile"),
    (
        [{"fold": ["*_hair", "halo"], "into": "aris"}],
        "blue_hair halo smile",
        "blue hair, halo, smile",
    ),
    ([{"fold": ["aris*"], "into": "aris"}], "aris aris_(maid)", "aris"),
    ([{"fold": ["*"], "into": "aris"}], "smile aris 1girl", "aris"),
    # add
    ([{"add": ["ohwx style"]}], "smile 1girl", "ohwx style, 1girl, smile"),
    ([{"add": ["first", "second"]}], "smile", "first, second, smile"),
    ([{"add": ["smile"]}], "1girl smile halo", "smile, 1girl, halo"),
    ([{"add": ["trigger_word"]}], "", "trigger word"),
    # order of the rules
    ([{"rename": {"gun": "rifle"}}, {"drop": ["rifle"]}], "gun smile", "smile"),
    ([{"drop": ["rifle"]}, {"rename": {"gun": "rifle"}}], "gun smile", "smile"),
    ([{"add": ["x"]}, {"drop": ["x"]}], "smile", "smile"),
    ([{"collapse": ["b", "c"]}, {"rename": {"a": "b"}}], "a c", "b"),
    ([{"fold": ["hat"], "into": "witch"}, {"rename": {"mage": "witch"}}], "mage hat", "witch"),
    ([{"add": ["aris"]}, {"fold": ["halo"], "into": "aris"}], "halo smile", "aris, smile"),
]


@pytest.mark.parametrize(("rules", "tags", "caption"), BY_RULES)
def test_rules_by_hand(image: Make, rules: Rules, tags: str, caption: str) -> None:
    assert caption_of(image(score=None, general=tags.split()), rules) == caption


BY_SECTION: list[tuple[dict[str, Any], dict[str, str], str]] = [
    ({}, {"general": "1girl", "meta": "monochrome highres"}, "1girl, monochrome"),
    ({}, {"meta": "greyscale sketch scan"}, "greyscale, sketch"),
    ({"keep_tags": []}, {"general": "1girl", "meta": "monochrome"}, "1girl"),
    ({"keep_tags": ["scan*"]}, {"meta": "scan scan_artifacts highres"}, "scan, scan artifacts"),
    ({"drop_tags": ["monochrome"]}, {"meta": "monochrome"}, ""),
    ({"drop_tags": ["*_text"]}, {"general": "english_text text"}, "text"),
    ({"drop_categories": ["character"]}, {"character": "aris", "general": "halo"}, "halo"),
    ({"order": ["rest", "count"]}, {"general": "1girl halo", "character": "aris"}, "halo, 1girl"),
    ({"order": ["series", "character"]}, {"character": "a", "copyright": "b"}, "b, a"),
    ({"rating_words": {"general": "safe"}}, {"general": "halo"}, "halo, safe"),
    (
        {"preset": "style"},
        {"general": "blue_hair", "meta": "highres", "artist": "x_y"},
        "blue hair, highres",
    ),
    (
        {"preset": "model"},
        {"general": "blue_hair", "meta": "highres", "artist": "x_y"},
        "blue hair",
    ),
    (
        {"preset": "character"},
        {
            "general": "1girl long_hair blue_eyes halo school_uniform from_side closed_eyes",
            "character": "aris",
        },
        "1girl, aris, school uniform, from side, closed eyes",
    ),
    ({"preset": "character"}, {"general": "cat_ears ribbon twintails mole_under_eye"}, "ribbon"),
    ({"preset": "character"}, {"copyright": "blue_archive", "general": "hat"}, "hat"),
    (
        {"preset": "situation"},
        {"general": "1girl sitting cute alternate_costume", "character": "aris", "copyright": "ba"},
        "1girl, sitting",
    ),
    ({"preset": "object"}, {"general": "sword parody", "character": "aris"}, "sword"),
    (
        {"preset": "character", "rule": [{"add": ["ohwx"]}]},
        {"general": "blue_hair hat"},
        "ohwx, hat",
    ),
    (
        {"preset": "character", "drop_categories": ["artist"]},
        {"copyright": "ba", "general": "hat"},
        "ba, hat",
    ),
]


@pytest.mark.parametrize(("section", "tags", "caption"), BY_SECTION)
def test_sections_by_hand(
    image: Make, section: dict[str, Any], tags: dict[str, str], caption: str
) -> None:
    post = image(score=None, **{category: names.split() for category, names in tags.items()})
    assert caption_of(post, **section) == caption


def test_a_preset_written_out_is_not_taken_twice() -> None:
    once = Caption.model_validate({"preset": "character", "rule": [{"add": ["x"]}]})
    again = Caption.model_validate(once.model_dump(mode="json"))
    assert again == once and len(once.rule) == len(preset_table("character")["rule"]) + 1


@pytest.mark.parametrize("name", PRESETS)
def test_every_rule_of_a_preset_has_its_reason(name: Any) -> None:
    caption = Caption.model_validate({"preset": name})
    assert "artist" in caption.drop_categories
    assert all(rule.reason for rule in caption.rule)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({}, "it says nothing"),
        ({"drop": ["a"], "add": ["b"]}, "it says drop and add"),
        ({"fold": ["a"]}, "fold needs into"),
        ({"drop": ["a"], "into": "b"}, "fold needs into"),
        ({"collapse": ["a"]}, "two tags or more"),
        ({"rename": {"a": "b", "B": "a"}}, "renames in a circle: a -> b -> a"),
    ],
)
def test_rules_that_mean_nothing_are_refused(rule: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Caption.model_validate({"rule": [rule]})


def test_what_a_rule_did_is_told_with_its_reason(image: Make) -> None:
    post = image(general=("gun", "weapon", "halo"))
    rules = [
        {"collapse": GUNS, "reason": "one word is enough"},
        {"rename": {"gun": "firearm"}},
        {"fold": ["halo"], "into": "firearm"},
    ]
    caption = Caption.model_validate({"rule": rules})
    written = write_caption(post, compile_rules(caption, [post], from_booru=True))
    assert [(c.tag, c.what, c.reason) for c in written.changes] == [
        ("weapon", "collapsed", "one word is enough"),
        ("gun", "firearm", ""),
        ("halo", "folded", "stands in firearm"),
    ]
    assert written.dropped == (("weapon", "collapsed"), ("halo", "folded"))


@pytest.mark.parametrize("verb", ["rename", "add"])
def test_a_rule_cannot_write_an_artist(image: Make, verb: str) -> None:
    post = image(score=None, general=("smile", "hat"), artist=("john_doe",))
    rules: dict[str, Rules] = {
        "rename": [{"rename": {"smile": "by John Doe"}}],
        "add": [{"add": ["john doe style"]}],
    }
    assert caption_of(post, rules[verb]) in ("hat", "smile, hat")
    elsewhere = image(2, score=None, general=("smile", "hat"))
    compiled = compile_rules(
        Caption.model_validate({"rule": rules[verb]}), [post, elsewhere], from_booru=True
    )
    assert "doe" not in write_caption(elsewhere, compiled).record.caption


TAGS = st.sampled_from(
    [
        "gun",
        "rifle",
        "halo",
        "smile",
        "blue_hair",
        "long_hair",
        "john_doe",
        "by_john_doe",
        "aris",
        "1girl",
    ]
)
RULE = st.one_of(
    st.builds(lambda t: {"drop": t}, st.lists(TAGS, min_size=1, max_size=2)),
    st.builds(lambda a, b: {"rename": {a: b}}, TAGS, TAGS),
    st.builds(lambda t: {"collapse": t}, st.lists(TAGS, min_size=2, max_size=4, unique=True)),
    st.builds(lambda t, i: {"fold": t, "into": i}, st.lists(TAGS, min_size=1, max_size=3), TAGS),
    st.builds(lambda t: {"add": [t]}, TAGS),
)


@settings(max_examples=300, deadline=None)
@given(
    rules=st.lists(RULE, max_size=6),
    tags=st.lists(TAGS, max_size=8, unique=True),
    characters=st.lists(TAGS, max_size=2, unique=True),
)
def test_no_order_of_rules_lets_an_artist_through_and_captions_stay_as_they_are(
    rules: Rules, tags: list[str], characters: list[str]
) -> None:
    try:
        caption = Caption.model_validate({"rule": rules, "order": ["count", "character", "rest"]})
    except ValidationError as error:
        assert "circle" in str(error)
        return
    post = ImageRecord(
        md5="0" * 32,
        path="a.png",
        width=1,
        height=1,
        tags={"general": tuple(tags), "character": tuple(characters), "artist": ("john_doe",)},
        score=None,
        rating="g",
        source="danbooru:1",
    )
    compiled = compile_rules(caption, [post], from_booru=True)
    written = write_caption(post, compiled).record.caption
    assert " doe " not in spell(written).tokens
    said = [text for text in written.split(", ") if text]
    # Put in once more, each in the category that it came from: nothing is left for a rule to do.
    named = {spell(tag).same for tag in characters}
    renamed = {
        spell(a).same: spell(b).same for rule in rules for a, b in rule.get("rename", {}).items()
    }
    for _ in rules:
        named |= {renamed[name] for name in named if name in renamed}
    again = post.model_copy(
        update={
            "tags": {
                "general": tuple(text for text in said if spell(text).same not in named),
                "character": tuple(text for text in said if spell(text).same in named),
                "artist": ("john_doe",),
            }
        }
    )
    second = write_caption(again, compiled).record.caption
    assert sorted(second.split(", ")) == sorted(written.split(", "))
