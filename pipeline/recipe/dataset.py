"""The dataset recipe: where pictures come from and how their captions are written."""

import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pipeline.recipe.caption import Caption, Rating, Tagger
from pipeline.recipe.section import Name, RecipePath, Section

MOST_PIXELS = 120_000_000
"""Pictures beyond are refused unless a recipe says otherwise: as RGBA they take half a gigabyte."""


class Download(Section):
    """Pictures from a booru."""

    site: str = Field(min_length=1)
    """The site, which decides what API is spoken: danbooru, gelbooru, safebooru, yandere, e621 and
    their kin."""
    tags: str = Field(min_length=1)
    """The query, as typed into the site's search box. At most two tags on Danbooru without an
    account."""
    ratings: tuple[Rating, ...] = Field(("general",), min_length=1)
    """Which ratings to take. Anything wider than general is spelled out here."""
    limit: int = Field(50_000, ge=1)
    """Take at most so many pictures, newest first."""
    least_score: int | None = None
    """Take only posts of at least this score on the site; decided again whenever scores are read
    again."""
    most_pixels: int = Field(MOST_PIXELS, ge=1)
    """Pictures of more pixels, width times height, are refused before they are decoded."""
    host: str | None = None
    """Another address that speaks this site's API, such as a self-hosted booru:
    "http://127.0.0.1:8642"."""
    requests_per_second: float = Field(1.0, gt=0, le=1_000_000)
    """The ceiling for requests to one host, pages and files counted apart."""
    connections: int = Field(2, ge=1, le=64)
    """Files fetched at the same time."""
    contact: str = ""
    """How the site's admins reach you: your user name or id there. Goes into the User-Agent."""

    @field_validator("host")
    @classmethod
    def _is_an_address(cls, host: str | None) -> str | None:
        if host is not None:
            parts = urlsplit(host)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError('must be an address such as "http://127.0.0.1:8642"')
            return host.rstrip("/")
        return host


class Folder(Section):
    """Pictures that you have. Tags are read from NAME.txt beside NAME.jpg, comma-separated, if it
    is there; sentences from NAME.caption, one a line, each of which training may show instead of
    the caption that is made of the tags."""

    path: RecipePath
    """The folder, searched with all its sub-folders."""
    most_pixels: int = Field(MOST_PIXELS, ge=1)
    """Pictures of more pixels, width times height, are refused before they are decoded."""


class Masks(Section):
    """What of each picture counts, for [cache].masks = "files": pictures of grey, white where all
    of a pixel counts and black where nothing does, of their pictures' shape and of any size. Where
    this section is left out, NAME-masklabel.png beside NAME.jpg in [folder] is such a mask."""

    folder: RecipePath
    """The folder, searched with all its sub-folders: NAME.png, or NAME-masklabel.png, for NAME.jpg
    at the same place in [folder].path; of a [download], NAME is the md5 or the post's number."""


class Exclude(Section):
    """What is never taken, whatever the search finds; decided again at every download."""

    artists: tuple[str, ...] = ()
    """Artists by their tag."""
    tags: tuple[str, ...] = ()
    """Tags of any category, artists too."""
    posts: tuple[int, ...] = ()
    """Posts by their number on the site."""
    md5s: tuple[str, ...] = ()
    """Files by the md5 of their bytes."""
    uploaders: tuple[str, ...] = ()
    """Accounts that posted, by name, or by number where the site gives no more."""
    domains: tuple[str, ...] = ()
    """Hosts of the sources that posts name, with all names under them: "example.com"."""
    files: tuple[RecipePath, ...] = ()
    """Lists such as do-not-train.txt: one md5 or artist a line, or "tag:", "post:", "uploader:",
    "domain:", "artist:" or "md5:" and what it is. Lines that begin with # are passed over."""

    @field_validator("md5s")
    @classmethod
    def _are_digests(cls, md5s: tuple[str, ...]) -> tuple[str, ...]:
        for md5 in md5s:
            if not re.fullmatch("[0-9a-fA-F]{32}", md5):
                raise ValueError(f"{md5!r} is no md5, which has 32 hexadecimal digits")
        return md5s


class DatasetRecipe(Section):
    """What the pictures are."""

    name: Name
    """The folder under WORKSPACE/datasets."""
    download: Download | None = None
    folder: Folder | None = None
    masks: Masks | None = None
    exclude: Annotated[Exclude, Field(default_factory=Exclude)]
    caption: Annotated[Caption, Field(default_factory=Caption)]
    tagger: Tagger | None = None
    silence: tuple[str, ...] = ()
    """Codes of `urushi check`'s warnings that you have thought about."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.download is None) == (self.folder is None):
            raise ValueError("needs exactly one of [download] and [folder]")
        return self
