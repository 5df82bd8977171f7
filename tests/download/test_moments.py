import pytest

from pipeline.download.moments import moment, now, scored_at


@pytest.mark.parametrize(
    ("created", "read", "said"),
    [
        # 29 days old: the score may still move.
        ("2026-03-01T00:00:00+00:00", "2026-03-30T01:02:03.456+00:00", "2026-03-30T01:02:03+00:00"),
        # 31 days and eight years: as if it had been read at thirty days, told in UTC.
        ("2026-03-01T00:00:00+00:00", "2026-04-01T00:00:00+00:00", "2026-03-31T00:00:00+00:00"),
        ("2018-03-01T04:05:06.789-05:00", "2026-03-09T00:00:00Z", "2018-03-31T09:05:06+00:00"),
        ("", "2026-03-09T00:00:00+00:00", ""),
        ("last week", "2026-03-09T00:00:00+00:00", ""),
    ],
)
def test_an_old_score_read_again_is_no_news(created: str, read: str, said: str) -> None:
    assert scored_at(created, read) == said


def test_times_without_a_zone_are_none() -> None:
    assert moment("2026-03-01T00:00:00") is None
    here = moment(now())
    assert here is not None and here.utcoffset() is not None
