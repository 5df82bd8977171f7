"""A site's key from the environment or a key file to the requests of its API, and nowhere else.

    URUSHI_GELBOORU_USER_ID=123 URUSHI_GELBOORU_API_KEY=... urushi download RECIPE

or in ~/.config/urushi/keys.toml (URUSHI_KEYS names another file), readable by its owner alone:

    [gelbooru]
    user_id = "123"
    api_key = "..."

A key goes to the site's own hosts. One for a booru of one's own names it, as `host` in the file or
URUSHI_SITE_HOST, so that a recipe from elsewhere cannot send a key to where its author likes.
"""

import base64
import ipaddress
import logging
import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus, urlsplit

import requests
from requests.auth import AuthBase

from pipeline.download.posts import Account
from pipeline.errors import RequestError

HIDDEN = "***"
SHORTEST = 4
"""Characters of a secret that is looked for in texts: a shorter one would blacken half of them."""


@dataclass(frozen=True, repr=False)
class Credentials:
    """What an account is known by; shows itself to no one."""

    place: str = "header"
    values: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Credentials({', '.join(self.values) or 'none'})"

    def __bool__(self) -> bool:
        return bool(self.values)

    def __reduce__(self) -> str:
        # Pickled is written down: into a task's parameters, say.
        raise TypeError("Credentials are not to be stored.")

    def redacted(self, text: str) -> str:
        """`text` without the secrets, in whatever way an address may spell them."""
        for secret in self.values.values():
            if len(secret) < SHORTEST:
                continue
            for form in {secret, quote(secret), quote(secret, safe=""), quote_plus(secret)}:
                text = text.replace(form, HIDDEN)
        return text


class Signed(AuthBase):
    """Puts the key into a request at the last moment, so that nothing before has it to show."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        values = self._credentials.values
        if self._credentials.place == "address":
            request.prepare_url(request.url or "", dict(values))
        elif values:
            pair = ":".join(values.values()).encode()
            request.headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        return request


class Redacting(logging.Filter):
    """Takes the secrets out of what the HTTP library logs when someone turns its logging on."""

    def __init__(self, credentials: Credentials) -> None:
        super().__init__()
        self._credentials = credentials

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = self._credentials.redacted(record.getMessage())
        record.args = ()
        return True


def credentials_for(
    site: str,
    account: Account,
    address: str,
    domains: tuple[str, ...],
    environment: Mapping[str, str] | None = None,
) -> Credentials:
    """The key for `site` that may be sent to `address`; an empty one where there is none.

    Raises:
        RequestError: half a key, a key file that others can read or that is no TOML, or a way to
            the site on which others can listen.
    """
    environment = os.environ if environment is None else environment
    if not account.fields:
        return Credentials()
    known = _from_file(site, environment)
    prefix = f"URUSHI_{site.upper()}_"
    known |= {
        name: environment[prefix + name.upper()]
        for name in (*account.fields, "host")
        if environment.get(prefix + name.upper())
    }
    if not _is_for(address, domains, known.pop("host", "")):
        return Credentials()
    missing = [name for name in account.fields if not known.get(name)]
    if len(missing) == len(account.fields):
        return Credentials()
    if missing:
        raise RequestError(
            f"The key for {site} has no {missing[0]}. Set {prefix}{missing[0].upper()}, or "
            f"{missing[0]} in [{site}] of {key_file(environment)}."
        )
    parts = urlsplit(address)
    if parts.scheme != "https" and not _is_this_machine(parts.hostname or ""):
        raise RequestError(
            f"A key would go to {address} in the clear. Use https:// in [download].host, or unset "
            f"{prefix}{account.fields[-1].upper()}."
        )
    return Credentials(account.place, {name: known[name] for name in account.fields})


def key_file(environment: Mapping[str, str]) -> Path:
    """Where keys are looked for."""
    named = environment.get("URUSHI_KEYS")
    if named:
        return Path(named).expanduser()
    root = environment.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(root).expanduser() / "urushi" / "keys.toml"


def _from_file(site: str, environment: Mapping[str, str]) -> dict[str, str]:
    path = key_file(environment)
    try:
        mode = path.stat().st_mode
        if stat.S_IMODE(mode) & 0o077:
            raise RequestError(
                f"{path} holds keys and others can read it (mode {stat.S_IMODE(mode):04o}). "
                f"Run: chmod 600 {path}"
            )
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if environment.get("URUSHI_KEYS"):
            raise RequestError(f"URUSHI_KEYS names {path}, which is not there.") from None
        return {}
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:  # The parser's sentence may quote the line, and with it the key.
        raise RequestError(
            f'{path} is not TOML. It should look like this: [{site}] and below it api_key = "...".'
        ) from None
    table = tables.get(site, {})
    if not isinstance(table, dict):
        raise RequestError(f"{path}: {site} should be a table, [{site}].")
    return {name: str(value) for name, value in table.items()}


def _is_for(address: str, domains: tuple[str, ...], own: str) -> bool:
    """Whether a key for a site of `domains`, or for `own`, is meant for `address`."""
    host = urlsplit(address).hostname or ""
    if own:
        return own.rstrip("/") in (address, host)
    return _is_this_machine(host) or any(host == d or host.endswith(f".{d}") for d in domains)


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
