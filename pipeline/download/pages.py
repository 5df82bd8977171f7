"""Questions to a site's JSON API, one at a time, as slowly and as patiently as it wants."""

import json
import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, Self

import requests

from pipeline.download.pace import Pace
from pipeline.download.patience import Patience
from pipeline.download.posts import Malformed, Question
from pipeline.download.sites import Site
from pipeline.download.trouble import RESUMABLE, unreachable
from pipeline.errors import RequestError, UrushiError

THROTTLED = (429, 503)
NOT_THERE = (404, 451)
WRONG_QUESTION = (400, 406, 410, 422)
WORTH_SAYING = 5.0
"""Seconds of waiting, from which on a person is told."""


class Pages:
    """A session with a site's API. Calls may come from several threads; they take turns."""

    def __init__(
        self,
        site: Site,
        pace: Pace,
        patience: Patience,
        say: Callable[[str], None],
        rng: random.Random,
    ) -> None:
        self.address = site.address
        self._site = site
        self._pace = pace
        self._patience = patience
        self._say = say
        self._rng = rng
        self._turn = threading.Lock()
        self._session = requests.Session()
        # No .netrc and no proxy of the environment: nothing is sent that the recipe does not say.
        self._session.trust_env = False
        self._session.headers["User-Agent"] = site.user_agent
        self._session.headers["Accept"] = "application/json"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session.close()

    def ask(self, question: Question) -> Any:
        """The JSON that answers, or None where the site says that there is no such thing.

        Raises:
            RequestError: the site refuses the search, or does not speak this API.
            UrushiError: it cannot be reached, keeps failing, or keeps us out.
            Malformed: what it sends is not JSON.
        """
        with self._turn:
            return self._ask(question)

    def _ask(self, question: Question) -> Any:
        failures = throttled = 0
        began = time.monotonic()
        while True:
            self._pace.wait()
            try:
                response = self._session.get(
                    self._site.address + question.path,
                    params=dict(question.parameters),
                    timeout=(self._patience.connect, self._patience.silence),
                    allow_redirects=False,
                )
            except requests.RequestException as error:
                failures += 1
                if failures >= self._patience.tries:
                    self._unreachable(error, failures, time.monotonic() - began)
                time.sleep(self._patience.wait(failures, self._rng))
                continue
            if response.status_code in THROTTLED:
                throttled += 1
                self._slow_down(response, throttled)
            elif response.status_code >= 500:
                failures += 1
                if failures >= self._patience.tries:
                    self._keeps_failing(response, failures)
                time.sleep(self._patience.wait(failures, self._rng))
            else:
                return self._read(response)

    def _read(self, response: requests.Response) -> Any:
        status = response.status_code
        if status in NOT_THERE:
            return None
        if 300 <= status < 400:
            raise RequestError(
                f"{self._site.address} sends us on to {response.headers.get('Location', 'nowhere')}"
                ". If that is the booru, set it as [download].host."
            )
        if status in (401, 403):
            raise UrushiError(self._kept_out(response))
        if status in WRONG_QUESTION:
            raise RequestError(
                f"{self._site.address} refuses the search ({status}): "
                f"{self._complaint(response) or response.reason}. "
                "Change [download].tags; filters such as score:>=6 do not count as tags."
            )
        if status != 200:
            raise UrushiError(f"{self._site.address} answers {status} {response.reason}.")
        return _json(response.content)

    def _slow_down(self, response: requests.Response, times: int) -> None:
        if times >= self._patience.throttled_tries:
            raise UrushiError(
                f"{self._site.address} still answers {response.status_code} after {times} pauses: "
                "it has no room for us now. Try later, or with a lower "
                f"[download].requests_per_second. {RESUMABLE}"
            )
        pause = self._patience.throttled(times, response.headers.get("Retry-After"))
        if pause >= WORTH_SAYING:
            self._say(f"{self._site.address} asks us to wait {pause:.0f} s.")
        self._pace.hold(pause)

    def _kept_out(self, response: requests.Response) -> str:
        address = self._site.address
        if response.headers.get("cf-mitigated"):
            return (
                f"{address} challenges programs ({response.status_code}), and urushi goes round no "
                "challenge. Set [download].contact to your user name there, or ask its admins."
            )
        said = self._complaint(response)
        return f"{address} keeps us out ({response.status_code}{f': {said}' if said else ''})."

    def _complaint(self, response: requests.Response) -> str:
        try:
            return self._site.dialect.complaint(_json(response.content)).rstrip(".")
        except Malformed:
            return ""

    def _unreachable(self, error: requests.RequestException, tries: int, took: float) -> NoReturn:
        raise UrushiError(unreachable(self._site.address, error, tries, took)) from error

    def _keeps_failing(self, response: requests.Response, tries: int) -> NoReturn:
        said = self._complaint(response)
        raise UrushiError(
            f"{self._site.address} answered {response.status_code}"
            f"{f' ({said})' if said else ''} {tries} times in a row. Try later. {RESUMABLE}"
        )


def _json(content: bytes) -> Any:
    try:
        return json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it is not JSON ({error})") from error


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")
