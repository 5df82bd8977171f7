"""The sites that can be asked, and how we introduce ourselves to them."""

import ipaddress
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urljoin, urlsplit

from pipeline.download.danbooru import Danbooru
from pipeline.download.posts import Dialect
from pipeline.errors import RequestError
from pipeline.recipe.dataset import Download

DIALECTS: tuple[Dialect, ...] = (Danbooru(),)

PRETENDERS = ("mozilla", "python-requests", "aiohttp")
"""Words by which sites tell browsers and anonymous scripts from programs that say who they are."""


@dataclass(frozen=True)
class Site:
    """One address and how to behave there."""

    dialect: Dialect
    address: str
    """Without a slash at the end."""
    user_agent: str

    def file_url(self, url: str) -> str | None:
        """`url` made absolute, or None where it leads away from the site's own hosts.

        Nothing that a post says may make us fetch from elsewhere, the local network least of all.
        """
        try:
            absolute = urljoin(self.address + "/", url)
            parts, own = urlsplit(absolute), urlsplit(self.address)
        except ValueError:
            return None
        secure_enough = parts.scheme == "https" or parts.scheme == own.scheme == "http"
        host, home = parts.hostname or "", own.hostname or ""
        allowed = self.dialect.domain if _within(home, self.dialect.domain) else home
        return absolute if secure_enough and _within(host, allowed) else None


def site_of(asked: Download) -> Site:
    """The site that a recipe asks, ready to be spoken to.

    Raises:
        RequestError: an unknown site, or manners that its admins do not accept.
    """
    dialect = next((d for d in DIALECTS if d.site == asked.site), None)
    if dialect is None:
        known = ", ".join(d.site for d in DIALECTS)
        raise RequestError(f"[download].site = {asked.site!r} is not known. Known: {known}.")
    address = asked.host or dialect.address
    if _within(urlsplit(address).hostname or "", dialect.domain):
        if not asked.contact:
            raise RequestError(
                f"[download].contact is empty. {dialect.domain} wants to know whom it is dealing "
                'with: set it to your user name there, as in contact = "user NAME".'
            )
        if asked.requests_per_second > dialect.most_per_second:
            raise RequestError(
                f"[download].requests_per_second = {asked.requests_per_second:g} is more than "
                f"{dialect.domain} allows ({dialect.most_per_second:g}). Its admins ask for 1."
            )
    return Site(dialect, address, _user_agent(asked.contact))


def _within(host: str, domain: str) -> bool:
    """Whether `host` is `domain` or a name under it."""
    if host == domain:
        return True
    try:
        ipaddress.ip_address(domain)
    except ValueError:
        return host.endswith("." + domain)
    return False


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
