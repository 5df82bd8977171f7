"""Questions to a site's API, one at a time, as slowly and as patiently as it wants."""

import json
import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, NoReturn, Self
from xml.etree import ElementTree

import requests
from urllib3 import connectionpool

from pipeline.download.answers import Answer, Client
from pipeline.download.breaker import Breaker
from pipeline.download.credentials import Redacting
from pipeline.download.pace import Pace
from pipeline.download.patience import Patience
from pipeline.download.posts import Malformed, Question
from pipeline.download.sites import Site
from pipeline.download.trouble import RESUMABLE, no_room_for, not_itself, reason, unreachable
from pipeline.errors import RequestError, UrushiError

THROTTLED = (421, 429, 503)
NOT_THERE = (404, 451)
WRONG_QUESTION = (400, 406, 410, 422, 424)
TIMED_OUT = ("timed out", "timeout")
"""Words of a site whose search took it too long."""
MOST_SAID = 300
"""Characters of a site's own words that are passed on."""
WORTH_SAYING = 5.0
"""Seconds of waiting, from which on a person is told."""


class TimedOut(Exception):
    """The search takes the site too long. Asked for less at a time, it answers."""


class Pages:
    """A session with a site's API. Calls may come from several threads; they take turns.

    Nothing that holds the key is in sight when an error leaves here: requests' own errors quote
    addresses, so they are put into our words, and let go before one of ours is raised.
    """

    def __init__(
        self,
        site: Site,
        pace: Pace,
        patience: Patience,
        breaker: Breaker,
        say: Callable[[str], None],
        rng: random.Random,
    ) -> None:
        self.address = site.address
        self._site = site
        self._pace = pace
        self._patience = patience
        self._breaker = breaker
        self._say = say
        self._rng = rng
        self._turn = threading.Lock()
        self._redacting = Redacting(site.credentials)
        self._client = Client(site, patience)

    def __enter__(self) -> Self:
        connectionpool.log.addFilter(self._redacting)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        connectionpool.log.removeFilter(self._redacting)
        self._client.close()

    def ask(self, question: Question) -> Any:
        """The answer, JSON or an XML element, or None where the site says that there is none.

        Raises:
            RequestError: the site refuses the search, or does not speak this API.
            UrushiError: it cannot be reached, keeps failing, or keeps us out.
            TimedOut: the search is too much for it.
            Malformed: what it sends is neither.
        """
        with self._turn:
            return self._ask(question)

    def _ask(self, question: Question) -> Any:
        failures = throttled = 0
        began = time.monotonic()
        while True:
            self._breaker.wait()
            self._pace.wait()
            answer, why = self._get(question)
            if answer is None:
                failures += 1
                took = time.monotonic() - began
                trouble = unreachable(self._site.address, why, failures, took)
            elif answer.status in THROTTLED:
                throttled += 1
                self._slow_down(answer, throttled)
                self._breaker.worked()
                continue
            elif answer.status >= 500:
                said = self._complaint(answer)
                if any(word in said.lower() for word in TIMED_OUT):
                    self._breaker.worked()
                    raise TimedOut(said)
                failures += 1
                trouble = (
                    f"{self._site.address} answered {answer.status}"
                    f"{f' ({said})' if said else ''} {failures} times in a row. Try later. "
                    f"{RESUMABLE}"
                )
            else:
                self._breaker.worked()
                return self._read(answer, question)
            if failures >= self._patience.tries or self._breaker.is_open:
                self._breaker.trip(trouble)
                failures, began = 0, time.monotonic()
            else:
                time.sleep(self._patience.wait(failures, self._rng))

    def _get(self, question: Question) -> tuple[Answer | None, str]:
        """The answer, or None and why there is none."""
        address = self._site.address
        try:
            return self._client.get(address + question.path, question.parameters), ""
        except requests.RequestException as error:
            why = self._site.credentials.redacted(reason(error))
            ends = no_room_for(error, address)
            if not ends and isinstance(error, requests.exceptions.SSLError):
                ends = not_itself(address, why)
        if ends:
            raise UrushiError(ends)
        return None, why

    def _read(self, answer: Answer, question: Question) -> Any:
        status = answer.status
        if status in NOT_THERE:
            return None
        if 300 <= status < 400:
            there = self._told(answer.headers.get("Location", "nowhere"))
            raise RequestError(
                f"{self._site.address} sends us on to {there}. "
                "If that is the booru, set it as [download].host."
            )
        if status in (401, 403):
            raise UrushiError(self._kept_out(answer))
        if status in WRONG_QUESTION:
            raise RequestError(
                f"{self._site.address} refuses the search ({status}): "
                f"{self._complaint(answer) or answer.reason}. "
                "Change [download].tags; filters such as score:>=6 do not count as tags."
            )
        if status != 200:
            raise UrushiError(f"{self._site.address} answers {status} {answer.reason}.")
        if answer.unread:
            raise Malformed(answer.unread)
        if not answer.content and question.may_be_empty:
            return []
        try:
            content = decoded(answer.content, question.form)
        except Malformed:
            # Some say in XML what is wrong, whatever was asked for.
            content = _error_in_xml(answer.content)
            if content is None:
                raise
        if _is_refusal(content):
            said = self._said(content)
            raise UrushiError(
                f"{self._site.address} does not answer{f': {said}' if said else ''}. "
                f"Try later, or see that its key is the right one. {RESUMABLE}"
            )
        return content

    def _slow_down(self, answer: Answer, times: int) -> None:
        if times >= self._patience.throttled_tries:
            raise UrushiError(
                f"{self._site.address} still answers {answer.status} after {times} pauses: "
                "it has no room for us now. Try later, or with a lower "
                f"[download].requests_per_second. {RESUMABLE}"
            )
        pause = self._patience.throttled(times, answer.headers.get("Retry-After"))
        if pause >= WORTH_SAYING:
            self._say(f"{self._site.address} asks us to wait {pause:.0f} s.")
        self._pace.hold(pause)

    def _kept_out(self, answer: Answer) -> str:
        address, status = self._site.address, answer.status
        if answer.headers.get("cf-mitigated"):
            return (
                f"{address} challenges programs ({status}), and urushi goes round no "
                "challenge. Set [download].contact to your user name there, or ask its admins."
            )
        said = self._complaint(answer)
        remedy = ""
        if self._site.dialect.account.fields:
            remedy = (
                " See that the key that you set for it is the right one."
                if self._site.credentials
                else " It may want a key: see the README on keys."
            )
        return f"{address} keeps us out ({status}{f': {said}' if said else ''}).{remedy}"

    def _complaint(self, answer: Answer) -> str:
        for form in ("json", "xml"):
            try:
                return self._said(decoded(answer.content, form))
            except Malformed:
                pass
        return ""

    def _said(self, content: Any) -> str:
        if isinstance(content, ElementTree.Element):
            said = content.get("reason") or (content.text or "").strip()
        else:
            said = self._site.dialect.complaint(content)
        return self._told(said).rstrip(".")

    def _told(self, words: str) -> str:
        """A site's own words for a person: without the key, on one line, and not endless."""
        clean = self._site.credentials.redacted(words)
        return " ".join("".join(c if c.isprintable() else " " for c in clean).split())[:MOST_SAID]


def decoded(content: bytes, form: Literal["json", "xml"]) -> Any:
    """JSON's value or XML's root. Raises Malformed."""
    try:
        if form == "json":
            return json.loads(content, parse_constant=_no_number)
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
            raise Malformed("it is XML that declares entities")  # They can unfold without end.
        return ElementTree.fromstring(content)
    except (ValueError, RecursionError, ElementTree.ParseError) as error:
        raise Malformed(f"it is not {form.upper()} ({error})") from error


def _error_in_xml(content: bytes) -> Any:
    try:
        root = decoded(content, "xml")
    except Malformed:
        return None
    return root if _is_refusal(root) else None


def _is_refusal(content: Any) -> bool:
    """Whether an answer of status 200 says that it is none."""
    if isinstance(content, ElementTree.Element):
        return content.tag == "error" or content.get("success") == "false"
    return isinstance(content, dict) and content.get("success") in (False, "false")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")
