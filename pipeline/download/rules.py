"""A dataset recipe into the rules by which posts are taken or left out, each with its origin.

A list in [exclude].files has one entry a line: `md5:HEX`, `artist:NAME`, `tag:NAME`, `post:NUMBER`,
`uploader:NAME` or `domain:HOST`. A bare line is an md5 where it has 32 hexadecimal digits, else an
artist: such lists are mostly of these two. Lines that begin with # are passed over.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.errors import RequestError
from pipeline.recipe import DatasetRecipe
from pipeline.recipe.dataset import MOST_PIXELS, Exclude

Kind = Literal["md5", "post", "artist", "tag", "uploader", "domain"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""In the order in which they are asked; the first that fits is the one that is logged."""

MD5 = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True)
class Exclusion:
    """One thing that is never taken."""

    kind: Kind
    pattern: str
    """As posts are matched: lower case, tags with underscores."""
    origin: str
    """Who says so: "[exclude].artists", or "do-not-train.txt, line 7"."""

    def __str__(self) -> str:
        return f"{self.kind} {self.pattern}"


@dataclass(frozen=True)
class Rules:
    """What is taken of the posts that a search shows."""

    ratings: tuple[str, ...]
    limit: int
    """Files, newest first."""
    least_score: int | None = None
    most_pixels: int = MOST_PIXELS
    exclusions: tuple[Exclusion, ...] = ()


def rules_of(dataset: DatasetRecipe) -> Rules:
    """The rules of a recipe with a [download].

    Raises:
        RequestError: a list of exclusions cannot be read or has a line that means nothing.
    """
    asked = dataset.download
    assert asked is not None
    return Rules(
        asked.ratings,
        asked.limit,
        asked.least_score,
        asked.most_pixels,
        exclusions(dataset.exclude),
    )


def exclusions(exclude: Exclude) -> tuple[Exclusion, ...]:
    """Everything that [exclude] and its lists name, each once.

    Raises:
        RequestError: a list cannot be read or has a line that means nothing.
    """
    listed: list[tuple[Kind, tuple[str | int, ...], str]] = [
        ("md5", exclude.md5s, "md5s"),
        ("post", exclude.posts, "posts"),
        ("artist", exclude.artists, "artists"),
        ("tag", exclude.tags, "tags"),
        ("uploader", exclude.uploaders, "uploaders"),
        ("domain", exclude.domains, "domains"),
    ]
    found: dict[tuple[Kind, str], Exclusion] = {}
    for kind, patterns, key in listed:
        for pattern in patterns:
            one = Exclusion(kind, _spelled(kind, str(pattern)), f"[exclude].{key}")
            found.setdefault((one.kind, one.pattern), one)
    for path in exclude.files:
        for one in _lines(path):
            found.setdefault((one.kind, one.pattern), one)
    return tuple(found.values())


def _lines(path: Path) -> Iterator[Exclusion]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RequestError(f"The list {path} of [exclude].files cannot be read: {why}.") from error
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            yield _entry(entry, path, number)


def _entry(entry: str, path: Path, number: int) -> Exclusion:
    origin = f"{path.name}, line {number}"
    named, colon, rest = entry.partition(":")
    kind = next((kind for kind in KINDS if colon and named.strip().lower() == kind), None)
    if kind is None:
        # Names such as "re:dive" are tags too, so another prefix is no mistake.
        rest = entry
        kind = "md5" if MD5.fullmatch(entry.lower()) else "artist"
    pattern = _spelled(kind, rest)
    if not pattern or (kind == "md5" and not MD5.fullmatch(pattern)):
        raise RequestError(f"{path}, line {number}: {entry!r} names no {kind}. Mend or remove it.")
    if kind == "post" and not pattern.isdecimal():
        raise RequestError(f"{path}, line {number}: {rest.strip()!r} is no post's number.")
    return Exclusion(kind, pattern, origin)


def _spelled(kind: Kind, pattern: str) -> str:
    """As sites spell it: a person may write "Some Artist" for some_artist."""
    pattern = pattern.strip().lower()
    if kind in ("artist", "tag"):
        return "_".join(pattern.split())
    if kind == "domain":
        return pattern.partition("://")[2].partition("/")[0] if "://" in pattern else pattern
    return pattern
