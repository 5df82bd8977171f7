"""One limiter for all processes: turns and connections, measured; the breaker, by hand."""

import asyncio
import random
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from aiohttp.abc import AbstractResolver

from pipeline.download.addresses import OutsideOnly, is_outside
from pipeline.download.breaker import Breaker
from pipeline.download.pace import Pace
from pipeline.download.patience import Patience
from pipeline.download.turns import LENGTH, Ledger, Slots, shared_folder
from pipeline.errors import RequestError, UrushiError

ROOT = Path(__file__).parents[2]
TAKER = """
import sys, time
from pathlib import Path
from pipeline.download.pace import Pace
pace = Pace(float(sys.argv[2]), Path(sys.argv[1]))
while True:
    pace.wait()
    print(repr(time.monotonic()), flush=True)
"""


def taker(path: Path, per_second: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", TAKER, str(path), str(per_second)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> list[float]:
    process.kill()
    return [float(line) for line in process.communicate()[0].splitlines() if line]


def test_two_processes_take_turns_and_a_killed_one_leaves_its_own(tmp_path: Path) -> None:
    first, second = taker(tmp_path / "host", 20), taker(tmp_path / "host", 20)
    time.sleep(1.2)
    early = finish(first)
    time.sleep(0.6)
    late = finish(second)
    assert len(early) >= 3
    assert len(late) >= 8
    turns = sorted(early + late)
    gaps = [after - before for before, after in pairwise(turns)]
    # The time is taken after the turn, which the machine may delay: single gaps may be shorter.
    assert len(turns) <= (turns[-1] - turns[0]) * 20 + 2
    assert sorted(gaps)[len(gaps) // 2] >= 0.045
    alone = [at for at in late if at > early[-1] + 0.2]
    assert len(alone) >= 5  # The dead one's turns go to the other.


def test_a_pause_is_meant_for_all(tmp_path: Path) -> None:
    now = [1000.0]
    ours, theirs = (Pace(4, tmp_path / "host", lambda: now[0]) for _ in range(2))
    assert ours.claim() == 0
    assert theirs.claim() == pytest.approx(0.25)
    now[0] += 1
    ours.hold(30)
    assert theirs.claim() == pytest.approx(30)
    now[0] += 30
    assert theirs.claim() == 0
    assert ours.claim() == pytest.approx(0.5, abs=0.01)
    assert theirs.claim() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"\0" * LENGTH, b"other-boot 1e9 1e9".ljust(LENGTH)]
)
def test_what_someone_else_wrote_stops_no_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "host"
    path.write_bytes(content)
    pace = Pace(4, path, lambda: 1000.0)
    assert pace.claim() == 0
    assert pace.claim() == pytest.approx(0.25)


def test_a_turn_in_the_future_is_not_believed(tmp_path: Path) -> None:
    with Ledger(tmp_path / "host").taken() as turns:
        turns.last = 9e9
    pace = Pace(4, tmp_path / "host", lambda: 1000.0)
    assert pace.claim() == pytest.approx(0.25)


def test_connections_are_counted_over_all_who_have_them(tmp_path: Path) -> None:
    ours, theirs = Slots(tmp_path, "host:80", 2), Slots(tmp_path, "host:80", 2)
    first, second = ours.claim(), theirs.claim()
    assert first is not None
    assert second is not None
    assert ours.claim() is None
    assert theirs.claim() is None
    ours.release(first)
    third = theirs.claim()
    assert third is not None
    assert ours.claim() is None
    theirs.close()  # As its death would.
    assert ours.claim() is not None
    ours.close()


def test_a_connection_that_is_needed_again_at_once_is_kept(tmp_path: Path) -> None:
    ours, theirs = Slots(tmp_path, "host", 1, lease=60), Slots(tmp_path, "host", 1)
    slot = ours.claim()
    assert slot is not None
    ours.release(slot)
    assert theirs.claim() is None
    assert ours.claim() == slot
    ours.close()
    assert theirs.claim() is not None
    theirs.close()


def test_the_shared_folder_is_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert shared_folder().stat().st_mode & 0o077 == 0
    shared_folder().rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "urushi").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RequestError, match="belongs to someone else"):
        shared_folder()


def test_the_breaker_lets_one_through_and_gives_up_in_the_end() -> None:
    now, said = [0.0], list[str]()
    patience = Patience(cool_down=10, cool_down_longest=40, outage=100)
    breaker = Breaker(patience, said.append, random.Random(1), lambda: now[0])
    with pytest.raises(UrushiError, match="down"):
        breaker.trip("down.")  # It never worked: wrong address, most likely.
    breaker.worked()
    breaker.trip("down.")
    assert breaker.is_open
    assert 5 <= breaker.claim() <= 10
    breaker.trip("down.")  # Was under way as well: no second pause.
    assert len(said) == 1
    now[0] = 11
    assert breaker.claim() == 0
    assert 0 < breaker.claim() < 1  # One asks; the others wait for what it hears.
    breaker.trip("still down.")
    assert 9 < breaker.claim() <= 20
    now[0] = 32
    assert breaker.claim() == 0
    breaker.worked()
    assert not breaker.is_open
    assert breaker.claim() == breaker.claim() == 0
    breaker.trip("down again.")
    now[0] = 140
    with pytest.raises(UrushiError, match="for good"):
        breaker.trip("down for good.")


class Names(AbstractResolver):
    """A resolver that knows two hosts."""

    async def resolve(self, host, port=0, family=0):
        addresses = {"inside": ["10.1.2.3", "::1"], "both": ["127.0.0.1", "8.8.8.8"]}[host]
        return [{"host": address, "hostname": host, "port": port} for address in addresses]

    async def close(self) -> None:
        pass


def test_a_name_that_leads_into_a_private_network_is_not_followed() -> None:
    async def hosts(home: str, host: str) -> list[str]:
        return [found["host"] for found in await OutsideOnly(home, Names()).resolve(host)]

    assert asyncio.run(hosts("example.org", "both")) == ["8.8.8.8"]
    with pytest.raises(OSError, match="private network"):
        asyncio.run(hosts("example.org", "inside"))
    assert asyncio.run(hosts("inside", "inside")) == ["10.1.2.3", "::1"]  # The recipe names it.


@pytest.mark.parametrize(
    "inner", ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0"]
)
def test_an_address_that_stands_for_a_private_one_is_private(inner: str) -> None:
    """As networks without IPv4 write it, or tunnels: there a host's own name leads inside."""
    parts = [int(part) for part in inner.split(".")]
    pair = f"{parts[0]:02x}{parts[1]:02x}:{parts[2]:02x}{parts[3]:02x}"
    forms = [inner, f"::ffff:{inner}", f"64:ff9b::{inner}", f"2002:{pair}::1", f"::{inner}"]
    assert not any(is_outside(form) for form in forms)


@pytest.mark.parametrize(
    "address", ["fe80::1%eth0", "fc00::1", "fec0::1", "64:ff9b:1::808:808", "::1", "ff02::1"]
)
def test_addresses_of_local_networks_are_not_outside(address: str) -> None:
    assert not is_outside(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2606:4700::1111"]
)
def test_addresses_of_the_internet_are_outside(address: str) -> None:
    assert is_outside(address)
