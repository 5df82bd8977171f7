"""The dataset recipe: where pictures come from and how their captions are written."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pipeline.recipe.caption import Caption, Rating, Tagger
from pipeline.recipe.section import Name, RecipePath, Section


class Download(Section):
    """Pictures from a booru."""

    site: Literal["danbooru"]
    """Which site's API to speak."""
    tags: str = Field(min_length=1)
    """The query, as typed into the site's search box. At most two tags on Danbooru without an
    account."""
    ratings: tuple[Rating, ...] = Field(("general",), min_length=1)
    """Which ratings to take. Anything wider than general is spelled out here."""
    limit: int = Field(50_000, ge=1)
    """Take at most so many pictures, newest first."""
    host: str | None = None
    """Another address that speaks this site's API, such as a self-hosted booru:
    "http://127.0.0.1:8642"."""
    requests_per_second: float = Field(1.0, gt=0, le=1000)
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
    is there."""

    path: RecipePath
    """The folder, searched with all its sub-folders."""


class DatasetRecipe(Section):
    """What the pictures are."""

    name: Name
    """The folder under WORKSPACE/datasets."""
    download: Download | None = None
    folder: Folder | None = None
    caption: Annotated[Caption, Field(default_factory=Caption)]
    tagger: Tagger | None = None
    silence: tuple[str, ...] = ()
    """Codes of `urushi check`'s warnings that you have thought about."""

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.download is None) == (self.folder is None):
            raise ValueError("needs exactly one of [download] and [folder]")
        return self
