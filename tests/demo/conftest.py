"""One corpus by the demo's own rules, smaller, drawn once."""

from collections.abc import Iterator

import pytest
import requests

from demo.booru import BooruServer, running
from demo.corpus import Corpus, generate


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return generate(count=160)


@pytest.fixture
def booru(corpus: Corpus) -> Iterator[BooruServer]:
    with running(corpus=corpus) as server:
        yield server


@pytest.fixture
def session() -> Iterator[requests.Session]:
    """A client that says who it is."""
    with requests.Session() as client:
        client.trust_env = False
        client.headers["User-Agent"] = "a-test/1 (+tests)"
        yield client
