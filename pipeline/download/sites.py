"""The sites that can be asked, and how we introduce ourselves to them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urlsplit

from pipeline.download.addresses import Reach
from pipeline.download.credentials import Credentials, credentials_for, key_file
from pipeline.download.danbooru import Danbooru
from pipeline.download.e621 import E621
from pipeline.download.gelbooru import Gelbooru
from pipeline.download.gelbooru02 import Gelbooru02
from pipeline.download.moebooru import Moebooru
from pipeline.download.posts import Dialect
from pipeline.errors import RequestError
from pipeline.recipe.dataset import Download

DIALECTS: tuple[Dialect, ...] = (
    Danbooru("danbooru", "https://danbooru.donmai.us", "donmai.us"),
    Danbooru("aibooru", "https://aibooru.online", "aibooru.online", "aibooru.download"),
    Gelbooru("gelbooru", "https://gelbooru.com", "gelbooru.com"),
    Gelbooru02("safebooru", "https://safebooru.org", "safebooru.org"),
    Gelbooru02("tbib", "https://tbib.org", "tbib.org", form="json"),
    Moebooru("yandere", "https://yande.re", "yande.re"),
    Moebooru("konachan", "https://konachan.com", "konachan.com"),
    E621("e621", "https://e621.net", "e621.net"),
    E621("e926", "https://e926.net", "e926.net", "e621.net", ratings=("sensitive",)),
)
"""By the word in [download].site, the site's API, and the domains of its own."""

PRETENDERS = ("mozilla", "python-requests", "aiohttp")
"""Words by which sites tell browsers and anonymous scripts from programs that say who they are."""


@dataclass(frozen=True)
class Site:
    """One address and how to behave there."""

    dialect: Dialect
    address: str
    """Without a slash at the end."""
    user_agent: str
    credentials: Credentials = field(default_factory=Credentials)

    @property
    def host(self) -> str:
        """Of the API, with its port."""
        return urlsplit(self.address).netloc

    @cached_property
    def reach(self) -> Reach:
        return Reach(self.address, self.dialect.domains)

    def file_url(self, url: str) -> str | None:
        """`url` made absolute, or None where it leads away from the site's own hosts."""
        return self.reach.file(url)


def site_of(asked: Download, environment: Mapping[str, str] | None = None) -> Site:
    """The site that a recipe asks, ready to be spoken to. Keys come from `environment`, or ours.

    Raises:
        RequestError: an unknown site, manners that its admins do not accept, or a key that is
            missing or lies open.
    """
    dialect = dialect_of(asked.site)
    address = asked.host or dialect.address
    user_agent = _user_agent(asked.contact)
    credentials = credentials_for(
        dialect.site, dialect.account, address, dialect.domains, environment
    )
    if Reach(address, dialect.domains).is_public:
        _check_manners(dialect, asked)
        if dialect.account.required and not credentials:
            variables = " and ".join(
                f"URUSHI_{dialect.site.upper()}_{name.upper()}" for name in dialect.account.fields
            )
            raise RequestError(
                f"{dialect.domains[0]} answers no one without a key. Your account's options page "
                f"there shows it; set {variables}, or write them into [{dialect.site}] of "
                f"{key_file(os.environ if environment is None else environment)}."
            )
    return Site(dialect, address, user_agent, credentials)


def dialect_of(site: str) -> Dialect:
    """The dialect by a recipe's word for its site.

    Raises:
        RequestError: there is none of that name.
    """
    dialect = next((d for d in DIALECTS if d.site == site), None)
    if dialect is None:
        names = [d.site for d in DIALECTS]
        close = get_close_matches(site, names, 1)
        meant = f" Did you mean {close[0]!r}?" if close else ""
        raise RequestError(
            f"[download].site = {site!r} is not known.{meant} Known: {', '.join(names)}."
        )
    return dialect


def _check_manners(dialect: Dialect, asked: Download) -> None:
    domain = dialect.domains[0]
    if not asked.contact:
        raise RequestError(
            f"[download].contact is empty. {domain} wants to know whom it is dealing "
            'with: set it to your user name there, as in contact = "user NAME".'
        )
    if asked.requests_per_second > dialect.most_per_second:
        raise RequestError(
            f"[download].requests_per_second = {asked.requests_per_second:g} is more than "
            f"{domain} allows ({dialect.most_per_second:g}). Its admins ask for 1."
        )


def _user_agent(contact: str) -> str:
    if not re.fullmatch(r"[\x20-\x7e]*", contact) or any(p in contact.lower() for p in PRETENDERS):
        raise RequestError(
            "[download].contact must be plain ASCII on one line and must not look like a browser "
            f"or a library (it is {contact!r}). A user name or an address is what is wanted."
        )
    try:
        own = version("urushi")
    except PackageNotFoundError:
        own = "0"
    return f"urushi/{own} (+{contact})" if contact else f"urushi/{own}"
