"""The pictures of a dataset into the list of those who made them, for attribution.

urushi credits DATASET|RECIPE --out CREDITS.md

Artists never reach a caption; here they are named, each with the pictures and their sources.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from pipeline.artefacts.chain import FORMERS_FILE, IMAGES_FILE
from pipeline.artefacts.records import ImageRecord, read_former_names, read_records
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.database import Database

NOT_NAMED = "(not named)"
"""Whose pictures bear no artist's tag."""


@dataclass(frozen=True)
class Source:
    """One picture and where it was found."""

    md5: str
    post: str
    """ "danbooru:123", or a file's name."""
    url: str
    """The source that the post states; "" where it states none."""


@dataclass(frozen=True)
class Credit:
    """An artist and the pictures that are theirs."""

    artist: str
    sources: tuple[Source, ...]
    former: tuple[str, ...] = ()
    """What the artist was called before, as the site says."""

    @property
    def pictures(self) -> int:
        return len({source.md5 for source in self.sources})


def credits_of(folder: DatasetFolder) -> list[Credit]:
    """Everyone whose pictures are in the dataset, those with most first.

    Raises:
        UrushiError: the dataset was never downloaded, or its store cannot be read.
    """
    records = read_records(folder.images / IMAGES_FILE, ImageRecord)
    found: dict[str, list[Source]] = {}
    with ExitStack() as stack:
        database = None
        if folder.posts.exists():
            database = stack.enter_context(Database(folder.posts))
        for record in records:
            sources = _sources(record, database)
            for artist in record.tags.get("artist") or (NOT_NAMED,):
                found.setdefault(artist, []).extend(sources)
    return _sorted(found, read_former_names(folder.images / FORMERS_FILE))


def merged(several: Iterable[Iterable[Credit]]) -> list[Credit]:
    """The credits of several datasets as one list; what lies in two is named once."""
    found: dict[str, dict[Source, None]] = {}
    former: dict[str, tuple[str, ...]] = {}
    for credits in several:
        for credit in credits:
            found.setdefault(credit.artist, {}).update(dict.fromkeys(credit.sources))
            names = (*former.get(credit.artist, ()), *credit.former)
            former[credit.artist] = tuple(dict.fromkeys(names))
    return _sorted(found, former)


def _sorted(
    found: Mapping[str, Iterable[Source]], former: Mapping[str, tuple[str, ...]]
) -> list[Credit]:
    credits = [
        Credit(artist, tuple(sources), former.get(artist, ())) for artist, sources in found.items()
    ]
    return sorted(credits, key=lambda credit: (-credit.pictures, credit.artist))


def _sources(record: ImageRecord, database: Database | None) -> list[Source]:
    if database is None:
        return [Source(record.md5, record.source, "")]
    with database.errors():
        rows = database.db.execute(
            "SELECT site || ':' || post_id, source_url FROM post WHERE md5 = ? ORDER BY post_id",
            (record.md5,),
        ).fetchall()
    # A post whose file was replaced since is no longer found by it.
    return [Source(record.md5, post, url) for post, url in rows or [(record.source, "")]]


def as_markdown(credits: Iterable[Credit]) -> str:
    """A heading an artist, a line a picture."""
    lines = ["# Credits", ""]
    for credit in credits:
        pictures = "1 picture" if credit.pictures == 1 else f"{credit.pictures:,} pictures"
        once = f" (once {', '.join(map(_plain, credit.former))})" if credit.former else ""
        lines += [f"## {_plain(credit.artist)}{once}", "", f"{pictures}:", ""]
        for source in credit.sources:
            urls = " ".join(f"<{url}>" if "://" in url else _plain(url) for url in _urls(source))
            lines.append(f"- {source.post}{' ' if urls else ''}{urls}")
        lines.append("")
    return "\n".join(lines)


def as_csv(credits: Iterable[Credit]) -> str:
    """A row for each artist and post."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("artist", "md5", "post", "source", "former names"))
    for credit in credits:
        for source in credit.sources:
            urls, former = " ".join(_urls(source)), " ".join(credit.former)
            writer.writerow((credit.artist, source.md5, source.post, urls, former))
    return buffer.getvalue()


def as_json(credits: Iterable[Credit]) -> str:
    """One object an artist."""
    rows = [
        {
            "artist": credit.artist,
            "former": list(credit.former),
            "pictures": credit.pictures,
            "sources": [asdict(source) for source in credit.sources],
        }
        for credit in credits
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def _urls(source: Source) -> list[str]:
    return source.url.split()


def _plain(text: str) -> str:
    """Without what Markdown would take for marks."""
    return "".join(f"\\{letter}" if letter in r"\`*_[]<>#" else letter for letter in text)
