"""What may be fetched: files on the site's own hosts, at addresses that are no one's private ones.

A post says where its file lies, and anyone may post. Neither what it says nor where a host sends us
on to may make this program read the local network.
"""

import ipaddress
import socket
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import urljoin, urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
"""IPv4 addresses in networks that have no IPv4 of their own (RFC 6052)."""
RESERVED = ipaddress.IPv6Network("::/8")
"""Of IPv6, among it addresses that once stood for an IPv4 address."""


@dataclass(frozen=True)
class Reach:
    """The hosts of one site."""

    address: str
    """Of its API, without a slash at the end."""
    domains: tuple[str, ...]
    """The public site's own."""

    @cached_property
    def home(self) -> str:
        return urlsplit(self.address).hostname or ""

    @cached_property
    def is_public(self) -> bool:
        """Whether `address` is the public site, and not one's own that speaks its API."""
        return any(within(self.home, domain) for domain in self.domains)

    @cached_property
    def _scheme(self) -> str:
        return urlsplit(self.address).scheme

    @cached_property
    def _allowed(self) -> tuple[str, ...]:
        return self.domains if self.is_public else (self.home,)

    def file(self, url: str) -> str | None:
        """`url` made absolute, or None where it leads away from the site's own hosts."""
        try:
            parts = urlsplit(url)
            if not (parts.scheme and parts.netloc):
                parts = urlsplit(urljoin(self.address + "/", url))
            host = parts.hostname or ""
        except ValueError:
            return None
        secure_enough = parts.scheme == "https" or parts.scheme == self._scheme == "http"
        if not secure_enough or not any(within(host, domain) for domain in self._allowed):
            return None
        return parts.geturl()  # And not `url`, which others might read in another way.


class OutsideOnly(AbstractResolver):
    """Names into addresses, private ones left out except for the host that the recipe names."""

    def __init__(self, home: str, names: AbstractResolver | None = None) -> None:
        self._home = home
        self._names = names or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._names.resolve(host, port, family)
        if host == self._home:
            return found
        outside = [one for one in found if is_outside(one["host"])]
        if found and not outside:
            raise OSError(None, f"{host} is an address of a private network")
        return outside

    async def close(self) -> None:
        await self._names.close()


def is_outside(address: str) -> bool:
    """Whether an address is one of the internet's, or stands for an IPv4 address that is."""
    found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        meant = found.ipv4_mapped or found.sixtofour
        if found in TRANSLATED:
            meant = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if meant is None and (found in RESERVED or found.is_site_local):
            return False
        found = meant or found
    return found.is_global and not found.is_multicast


def within(host: str, domain: str) -> bool:
    """Whether `host` is `domain` or a name under it."""
    if host == domain:
        return True
    try:
        ipaddress.ip_address(domain)
    except ValueError:
        return bool(domain) and host.endswith("." + domain)
    return False
