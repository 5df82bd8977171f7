"""The md5 beside the receiving: the same digits however the bytes come, and few that wait."""

import asyncio
import hashlib
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.download.md5 import MOST_BEHIND, Md5


@given(st.binary(), st.lists(st.binary(min_size=1), max_size=8), st.sets(st.integers(0, 7)))
def test_it_is_that_of_all_bytes_in_their_order(
    head: bytes, chunks: list[bytes], pauses: set[int]
) -> None:
    async def digits() -> str:
        md5 = Md5()
        md5.update(head)
        for number, chunk in enumerate(chunks):
            md5.follow(chunk)
            if number in pauses:
                await md5.settle()
        return await md5.settle()

    assert asyncio.run(digits()) == hashlib.md5(head + b"".join(chunks)).hexdigest()


def test_it_goes_on_from_what_was_read_before() -> None:
    assert asyncio.run(Md5(hashlib.md5(b"a")).settle()) == hashlib.md5(b"a").hexdigest()


class Slow:
    """Hashes nothing before it may."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.by = set[int]()
        self._hash = hashlib.md5()

    def update(self, chunk: bytes) -> None:
        assert self.may.wait(10)
        self.by.add(threading.get_ident())
        self._hash.update(chunk)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


@pytest.mark.parametrize("beyond", [0, 1])
def test_it_says_when_too_much_waits(beyond: int) -> None:
    content = bytes(MOST_BEHIND + beyond)
    slow = Slow()

    async def digits() -> str:
        md5 = Md5(slow)  # type: ignore[arg-type]
        md5.follow(content)
        assert md5.is_behind == (beyond > 0)
        slow.may.set()
        await md5.settle()
        assert not md5.is_behind
        return await md5.settle()

    assert asyncio.run(digits()) == hashlib.md5(content).hexdigest()
    assert threading.get_ident() not in slow.by
