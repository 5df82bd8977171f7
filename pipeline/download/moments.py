"""Times as they are written: UTC, ISO 8601."""

from datetime import UTC, datetime, timedelta

SETTLED = timedelta(days=30)
"""After which a post's score is taken to be what it will be."""


def now() -> str:
    """To the millisecond: what was read before and after a moment must not look the same."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def moment(text: str) -> datetime | None:
    """The time that `text` says; None where it says none, or not in which zone."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo is not None else None


def scored_at(created_at: str, read_at: str) -> str:
    """When a score was read, or when the post was SETTLED old, whichever came first, to the second.

    To read an old score again changes nothing that depends on its age, and so no record. Of a post
    that does not say when it was made, nothing is said.
    """
    created, read = moment(created_at), moment(read_at)
    if created is None or read is None:
        return ""
    return min(read, created + SETTLED).astimezone(UTC).isoformat(timespec="seconds")
