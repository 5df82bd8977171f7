"""The short way to a picture's artists among its tags finds what asking every tag finds."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.caption.artists import names_one_of, naming, vocabulary_of

WORDS = st.sampled_from(("ask", "Foo", "foo", "bar", "by", "style", "drawn_by", ":3", "(", "+"))
NAMES = st.lists(WORDS, min_size=1, max_size=3).map("_".join)
TAGS = NAMES | st.tuples(NAMES, NAMES).map(lambda pair: f"{pair[0]}_({pair[1]})")


@given(own=st.lists(TAGS, max_size=3), said=st.lists(TAGS, max_size=6), more=st.lists(TAGS))
def test_no_tag_that_names_the_artist_is_passed_over(
    own: list[str], said: list[str], more: list[str]
) -> None:
    found = naming({"artist": own, "general": said}, vocabulary_of([*said, *more]), {})
    assert found == {tag for tag in said if names_one_of(tag, own)}


def test_a_name_that_no_tag_has_is_not_looked_for() -> None:
    vocabulary = vocabulary_of(["long_hair", "drawn_by_ask"])
    assert vocabulary.may_name("ask_(askzy)") and vocabulary.may_name("hair_long")
    assert not vocabulary.may_name("foo_hair")
