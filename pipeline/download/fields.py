"""The loose values of sites' JSON and XML into ours: numbers, digests, types, tags.

Numbers come as text where XML is spoken, booleans as words, digests in capitals; anything may be
absent. What cannot be read is None or empty, never a guess.
"""

import html
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from pipeline.download.posts import Malformed
from pipeline.size import Size

LARGEST = 2**63 - 1
"""Of a number that SQLite holds."""
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
MOVING_TAGS = frozenset(("animated", "animated_gif", "animated_png", "ugoira", "video"))
MOVING_TYPES = frozenset(("gif", "mp4", "webm", "swf", "zip"))


def whole(content: Mapping[str, Any], key: str) -> int | None:
    """A whole number, also where it is written as text."""
    value = content.get(key)
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,19}", value.strip()):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > LARGEST:
        return None
    return value


def text(content: Mapping[str, Any], key: str) -> str:
    """Text, or "" where there is none."""
    value = content.get(key)
    return value if isinstance(value, str) else ""


def identifier(content: Mapping[str, Any]) -> int:
    """A post's number. Raises Malformed where it has none: it could not be told from others."""
    value = whole(content, "id")
    if value is None or value <= 0:
        raise Malformed("a post has no id")
    return value


def size(content: Mapping[str, Any], width: str = "width", height: str = "height") -> Size:
    """Pixels; 0 where the site does not say."""
    return Size(max(0, whole(content, width) or 0), max(0, whole(content, height) or 0))


def moment(value: Any) -> str:
    """A time as ISO 8601, from that, seconds since 1970, or "Sat Nov 04 15:04:00 -0500 2025"."""
    try:
        if isinstance(value, int):
            return datetime.fromtimestamp(value, UTC).isoformat()
        if isinstance(value, str) and value.isdecimal():
            return datetime.fromtimestamp(int(value), UTC).isoformat()
        try:
            return datetime.fromisoformat(value).isoformat()
        except ValueError:
            return _spelled_out(value).isoformat()
    except (TypeError, ValueError, OverflowError, OSError):
        return ""


def _spelled_out(value: str) -> datetime:
    # By hand: strptime's %a and %b know the names of the user's language only.
    found = re.fullmatch(r"\w{3} (\w{3}) +(\d+) (\d\d):(\d\d):(\d\d) ([+-]\d{4}) (\d{4})", value)
    if found is None:
        raise ValueError(value)
    month, day, hour, minute, second, zone, year = found.groups()
    number = MONTHS.index(month) + 1
    return datetime.fromisoformat(
        f"{year}-{number:02}-{int(day):02}T{hour}:{minute}:{second}{zone}"
    )


def digest(value: Any) -> str | None:
    """32 hexadecimal digits, or None."""
    found = value.strip().lower() if isinstance(value, str) else ""
    return found if re.fullmatch("[0-9a-f]{32}", found) else None


def extension(value: str) -> str:
    """The type that a name or the end of one claims: jpg, png, ..."""
    tail = urlsplit(value).path.rpartition("/")[2] if "/" in value else value
    return tail.rpartition(".")[2].lower().replace("jpeg", "jpg")


def names(value: Any) -> tuple[str, ...]:
    """Tags, each once, in their order; entities such as &#039; undone once."""
    return tuple(dict.fromkeys(html.unescape(value).split())) if isinstance(value, str) else ()


def moves(kind: str, tags: tuple[str, ...]) -> bool:
    """Whether the type or a tag says that it is no still picture."""
    return kind in MOVING_TYPES or not MOVING_TAGS.isdisjoint(tags)


def raw(content: Mapping[str, Any]) -> str:
    """The post as the site gave it, for the store."""
    return json.dumps(dict(content), ensure_ascii=False, separators=(",", ":"))


def aliases(content: Any) -> list[tuple[str, str]]:
    """(former name, name) of Danbooru's and e621's lists of aliases. Raises Malformed."""
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise Malformed("the aliases of tags are no list of objects")
    found = [(text(row, "antecedent_name"), text(row, "consequent_name")) for row in content]
    if not all(former and name for former, name in found):
        raise Malformed("an alias of a tag has no names")
    return found
