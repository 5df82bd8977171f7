import pytest

from pipeline.caption.spelling import KAOMOJI, spell


def test_every_listed_kaomoji_keeps_its_underscores() -> None:
    assert len(KAOMOJI) == 19
    assert all(spell(face).text == face for face in KAOMOJI)


@pytest.mark.parametrize("face", [";_;", "t_t", "n_n", "v_v", ">_@", "^_^", "\\m/", ":d", "^^^"])
def test_a_tag_without_a_word_is_a_face(face: str) -> None:
    assert spell(face).text == face


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("long_hair", "long hair"),
        ("x_men", "x men"),
        ("hoshino_(swimsuit)_(blue_archive)", "hoshino (swimsuit) (blue archive)"),
        ("long hair", "long hair"),
        ("  long__hair ", "long hair"),
        ("\u9752_\u9aea", "\u9752 \u9aea"),
        ("__", "__"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_underscores_of_words_are_spaces(tag: str, text: str) -> None:
    assert spell(tag).text == text


def test_spellings_of_one_tag_are_the_same() -> None:
    spellings = ("Long_Hair", "long hair", " long  hair", "\uff4cong_hair")
    assert {spell(spelling).same for spelling in spellings} == {"long hair"}
    assert spell("long_hair").same != spell("longhair").same


def test_tokens_are_runs_of_letters_and_digits() -> None:
    assert spell("Foo-bar_(baz)'s 2").tokens == " foo bar baz s 2 "
    assert spell("^_^").tokens == ""


def test_only_whole_tokens_in_a_row_are_contained() -> None:
    name = spell("john_doe").tokens
    assert name in spell("drawn_by_john-doe").tokens
    assert name not in spell("johnny_doe").tokens
    assert name not in spell("john_q_doe").tokens
