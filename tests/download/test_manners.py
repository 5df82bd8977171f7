"""Pace, patience and what may be fetched: the rules alone, with hand-worked numbers."""

import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from pipeline.download.booru import summed_up
from pipeline.download.pace import Pace
from pipeline.download.patience import LONGEST_OBEYED, Patience, seconds_asked
from pipeline.download.posts import Malformed
from pipeline.download.sites import Site, dialect_of
from pipeline.recipe.dataset import Download

DANBOORU = dialect_of("danbooru")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_turns_are_an_interval_apart_and_idle_time_is_not_saved_up() -> None:
    clock = Clock()
    pace = Pace(4, clock=clock)
    assert pace.claim() == 0
    assert pace.claim() == pytest.approx(0.25)
    clock.now += 0.1
    assert pace.claim() == pytest.approx(0.15)
    clock.now += 60
    assert pace.claim() == 0
    assert pace.claim() == pytest.approx(0.25)


def test_a_hold_pauses_everyone_and_halves_the_pace_once() -> None:
    clock = Clock()
    pace = Pace(4, clock=clock)
    pace.hold(2)
    pace.hold(3)  # Told again by a request that was under way.
    assert pace.claim() == pytest.approx(3)
    clock.now += 3
    assert pace.claim() == 0
    assert pace.claim() == pytest.approx(0.5, abs=0.002)


def test_a_pace_that_was_halved_grows_again_turn_by_turn() -> None:
    clock = Clock()
    pace = Pace(4, clock=clock)
    pace.hold(0)
    for _ in range(500):
        clock.now += 1
        assert pace.claim() == 0
    assert pace.claim() == pytest.approx(0.25, abs=1e-9)


def test_forty_thousand_pages_at_one_a_second_take_their_time() -> None:
    clock = Clock()
    pace = Pace(1, clock=clock)
    for _ in range(44_417):
        while (delay := pace.claim()) > 0:
            clock.now += delay
    assert clock.now - 100 == pytest.approx(44_416, abs=0.01)  # 12.3 hours


def test_waits_double_with_jitter_below_them() -> None:
    patience, rng = Patience(first_wait=1, longest_wait=8), random.Random(2)
    for failures, full in ((1, 1), (2, 2), (3, 4), (4, 8), (9, 8)):
        waits = [patience.wait(failures, rng) for _ in range(200)]
        assert full / 2 <= min(waits) < max(waits) <= full
        assert max(waits) - min(waits) > full / 4


def test_throttled_waits_follow_the_site_or_double() -> None:
    patience = Patience()
    assert patience.throttled(1, "7") == 7
    assert [patience.throttled(times, None) for times in (1, 2, 5, 9)] == [60, 120, 900, 900]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("3", 3),
        ("0", 0),
        ("1.5", 1.5),
        ("-4", None),
        ("soon", None),
        ("nan", None),
        ("", None),
        ("999999999", LONGEST_OBEYED),
        ("inf", LONGEST_OBEYED),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
    ],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert seconds_asked(header) == seconds


def test_retry_after_as_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert seconds_asked(soon) == pytest.approx(30, abs=2)


@pytest.mark.parametrize(
    ("address", "url", "allowed"),
    [
        ("https://danbooru.donmai.us", "https://cdn.donmai.us/original/a.png", True),
        ("https://danbooru.donmai.us", "http://cdn.donmai.us/original/a.png", False),
        ("https://danbooru.donmai.us", "https://donmai.us.evil.org/a.png", False),
        ("https://danbooru.donmai.us", "https://evildonmai.us/a.png", False),
        ("https://danbooru.donmai.us", "/original/a.png", True),
        ("https://danbooru.donmai.us", "//cdn.donmai.us/a.png", True),
        ("http://127.0.0.1:8642", "http://127.0.0.1:9000/a.png", True),
        ("http://127.0.0.1:8642", "http://127.0.0.2/a.png", False),
        ("http://127.0.0.1:8642", "http://x.127.0.0.1/a.png", False),
        ("http://127.0.0.1:8642", "ftp://127.0.0.1/a.png", False),
        ("https://booru.example.org", "https://cdn.booru.example.org/a.png", True),
        ("https://booru.example.org", "https://localhost/a.png", False),
        ("https://booru.example.org", "file:///etc/passwd", False),
    ],
)
def test_files_come_from_the_sites_own_hosts(address: str, url: str, allowed: bool) -> None:
    assert (Site(DANBOORU, address, "urushi/0").file_url(url) is not None) is allowed


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("gone: HTTP 404", "gone: HTTP 404"),
        (f"double: its pixels are those of {'0' * 32}", "double: its pixels are those of …"),
        ("refused: http://a.b/c leads to file:///x, which", "refused: … leads to …, which"),
        (
            "bad_content: stable mismatch: of another; see x.png",
            "bad_content: stable mismatch: of another",
        ),
        ("bad_content: 9x9 pixels (of 4)", "bad_content: 9x9 pixels"),
    ],
)
def test_equal_reasons_are_one_line_of_the_table(reason: str, line: str) -> None:
    assert summed_up(reason) == line


def test_a_post_is_read_by_what_it_has() -> None:
    raw = {
        "id": 7,
        "md5": " 0123456789ABCDEF0123456789ABCDEF ",
        "file_ext": "jpeg",
        "rating": "q",
        "score": -3,
        "is_pending": True,
    } | {f"tag_string_{c}": f"{c}_a {c}_b" for c in categories()}
    post = DANBOORU.read_post(raw)
    assert post.md5 == "0123456789abcdef0123456789abcdef"
    assert (post.extension, post.rating, post.score, post.status) == (
        "jpg",
        "questionable",
        -3,
        "pending",
    )
    assert (post.bytes, post.file_url, post.size) == (None, None, (0, 0))
    assert post.tags["artist"] == ("artist_a", "artist_b")
    assert DANBOORU.read_post(raw | {"md5": "../../etc"}).md5 is None
    assert DANBOORU.read_post(raw | {"rating": "safe"}).rating == "unknown"
    assert DANBOORU.read_post(raw | {"score": None}).score is None
    for broken in ({"id": True}, {"id": -7}, {"id": 2**64}, {"tag_string_artist": None}):
        with pytest.raises(Malformed):
            DANBOORU.read_post(raw | broken)


def categories() -> tuple[str, ...]:
    return ("general", "artist", "copyright", "character", "meta")


def test_the_filters_go_into_the_search() -> None:
    asked = Download(
        site="danbooru", tags="  blue_archive   solo ", ratings=("general", "explicit")
    )
    assert DANBOORU.query(asked).key == (
        "blue_archive solo rating:g,e -status:deleted filetype:jpg,png,webp"
    )
    assert DANBOORU.page("x", None).parameters == {"tags": "x", "limit": "200"}
    assert DANBOORU.page("x", 9).parameters["page"] == "b9"
