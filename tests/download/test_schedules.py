"""Any schedule of faults and kills ends alike: each file has one end, none is lost or doubled."""

import hashlib
import io
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from demo.booru import BooruServer, running
from demo.booru_dialects import Family
from demo.booru_faults import Fault, Hit
from demo.corpus import Corpus, Post
from pipeline.download import placing_process
from pipeline.size import Size

PROGRAM = """
import sys
from pathlib import Path
from pipeline.artefacts.job import load_job
from pipeline.download.patience import Patience
from pipeline.download.stage import run
from pipeline.progress import Silent
patience = Patience(first_wait=0.01, throttled_wait=0.05, silence=0.5, connect=2)
run(load_job(Path(sys.argv[1]), Path(sys.argv[2])), Silent(), patience)
"""
ROOT = Path(__file__).parents[2]
TAGS = {"general": ("many",), "artist": ("someone",), "copyright": ("maki-e_box",)}
SIDE = 12

PASSING = (
    Fault(cut=0),
    Fault(cut=60),
    Fault(cut=60, chunked=True),
    Fault(status=500),
    Fault(status=502, body=b"<html>"),
    Fault(status=429, headers={"Retry-After": "0"}),
    Fault(status=503, headers={"Retry-After": "-1"}),
    Fault(body=b""),
    Fault(body=b"<html>log in</html>"),
    Fault(flip=True),
    Fault(raw=b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n\x89PNG"),
    Fault(raw=b"nonsense"),
)
"""After which the file comes."""
LASTING = (Fault(status=404), Fault(status=403), Fault(status=451), Fault(body=b"never"))


TELLING = """
from pipeline.download import placing_process
placing_process.WORTH_IT = 1
ask = placing_process.PlacingProcess._ask
def told(self, arrivals):
    print(len(arrivals), flush=True)
    return ask(self, arrivals)
placing_process.PlacingProcess._ask = told
"""
"""Has even a few files placed by a process of its own, and tells of each batch that it is given."""


def many(count: int, seed: int) -> Corpus:
    """Small pictures of noise, each its own."""
    rng = random.Random(seed)
    posts, files = [], {}
    for number in range(1, count + 1):
        buffer = io.BytesIO()
        Image.frombytes("RGB", (SIDE, SIDE), rng.randbytes(SIDE * SIDE * 3)).save(buffer, "PNG")
        content = buffer.getvalue()
        md5 = hashlib.md5(content).hexdigest()
        files[md5] = content
        size, day = Size(SIDE, SIDE), datetime(2025, 1, 1, tzinfo=UTC)
        posts.append(Post(number, md5, "png", len(content), size, TAGS, 3, 0, "g", day))
    return Corpus(tuple(posts), files)


@dataclass(frozen=True)
class Schedule:
    """Which requests for which files go wrong, and how."""

    faults: dict[str, tuple[Fault, int]]
    """By md5: the fault, and how many requests meet it."""

    def plan(self, hit: Hit) -> Fault | None:
        fault, times = self.faults.get(hit.name, (None, 0))
        return fault if hit.nth <= times else None


def schedule(corpus: Corpus, share: float, seed: int, lasting: tuple[Fault, ...]) -> Schedule:
    rng = random.Random(seed)
    [wrong] = many(1, seed + 1).files.values()
    faults: dict[str, tuple[Fault, int]] = {}
    for post in rng.sample(corpus.posts, round(len(corpus.posts) * share)):
        if rng.random() < 0.25:
            fault = rng.choice((*lasting, Fault(body=wrong.ljust(post.bytes, b"\0")[: post.bytes])))
            faults[post.md5] = (fault, 10**6)
        else:
            faults[post.md5] = (rng.choice(PASSING), rng.choice((1, 1, 2)))
    return Schedule(faults)


@contextmanager
def started(downloading, before: str = "") -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", before + PROGRAM]
    command += [str(downloading.recipe), str(downloading.workspace)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def run_killed(downloading, booru: BooruServer, kills: list[int]) -> int:
    """Runs to the end, killed after each of so many requests; how often it was."""
    killed = 0
    for hits in kills:
        with started(downloading) as process:
            target = booru.count() + hits
            while booru.count() < target and process.poll() is None:
                time.sleep(0.0005)
        killed += process.returncode < 0
        time.sleep(0.02)  # The server answers what it was asked last, to no one.
    with started(downloading) as process:
        assert process.wait() == 0
    return killed


def check_the_end(downloading, corpus: Corpus, plan: Schedule) -> None:
    """One end state for every file, and the disk as the rows say."""
    states = dict(downloading.rows("SELECT md5, state FROM job"))
    lasting = {md5 for md5, (_, times) in plan.faults.items() if times > 2}
    assert set(states) == set(corpus.files)
    assert set(states.values()) <= {"have", "gone", "hidden", "bad_content"}
    have = {md5 for md5, state in states.items() if state == "have"}
    assert have == set(corpus.files) - lasting == set(downloading.files())
    assert have == set(downloading.images())
    failures = [failure.md5 for failure in downloading.failures()]
    assert sorted(failures) == sorted(lasting)
    assert not [path for path in downloading.folder.parts.glob("*") if path.stem in states]


@pytest.mark.parametrize(
    ("seed", "family", "connections"),
    [(1, "danbooru", 1), (2, "gelbooru", 4), (3, "moebooru", 2)],
)
def test_after_any_schedule_each_file_has_one_end(
    downloading, seed: int, family: Family, connections: int
) -> None:
    rng = random.Random(seed)
    corpus = many(40, seed)
    plan = schedule(corpus, 0.5, seed, LASTING)
    with running(corpus=corpus, faults=plan.plan, family=family) as booru:
        site = {"moebooru": "yandere"}.get(family, family)
        ratings = ["sensitive"] if family == "moebooru" else ["general"]
        downloading.write(
            booru.url, site=site, ratings=ratings, connections=connections, requests_per_second=400
        )
        run_killed(downloading, booru, [rng.randrange(2, 25) for _ in range(2)])
    check_the_end(downloading, corpus, plan)


@pytest.mark.skipif(not placing_process.CAN, reason="the system has no such processes")
def test_killed_while_a_process_places_its_files_each_has_one_end(downloading) -> None:
    corpus = many(600, 4)
    plan = schedule(corpus, 0.1, 4, LASTING)
    killed = 0
    with running(corpus=corpus, faults=plan.plan) as booru:
        downloading.write(booru.url, connections=4, requests_per_second=1000)
        for batches in (1, 3, 2):
            with started(downloading, TELLING) as process:
                assert process.stdout is not None
                told = [process.stdout.readline() for _ in range(batches)]
                process.kill()
            killed += all(told)
        with started(downloading, TELLING) as process:
            assert process.wait() == 0
    assert killed >= 2
    check_the_end(downloading, corpus, plan)


@pytest.mark.drill
def test_two_thousand_pictures_and_twenty_kills(downloading) -> None:
    """Nothing lost, nothing doubled, and at most one request more per kill than without."""
    corpus = many(2000, 9)
    plan = schedule(corpus, 0.05, 9, ())
    rng = random.Random(9)

    def counted(name: str, kills: list[int]) -> tuple[int, int]:
        downloading.workspace = downloading.workspace.with_name(name)
        with running(corpus=corpus, faults=plan.plan) as booru:
            downloading.write(booru.url, connections=1, requests_per_second=1000)
            killed = run_killed(downloading, booru, kills)
            check_the_end(downloading, corpus, plan)
            return killed, booru.count()

    _, undisturbed = counted("undisturbed", [])
    killed, disturbed = counted("disturbed", [rng.randrange(1, 150) for _ in range(20)])
    assert killed == 20
    assert disturbed <= undisturbed + killed
