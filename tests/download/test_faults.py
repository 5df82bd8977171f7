"""What boorus, networks and disks do to a download, and that it ends right all the same."""

import asyncio
import json
import random
import re
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from demo.booru import BooruServer, running
from demo.booru_faults import Fault, FaultPlan, Hit
from demo.booru_posts import post_json
from demo.corpus import Corpus, Post
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download import originals
from pipeline.download.fetch import open_session, receive
from pipeline.download.landing import Landing
from pipeline.download.parts import Part, part_of
from pipeline.download.patience import Patience
from pipeline.download.quarantine import Promise
from pipeline.download.sites import Site, dialect_of
from pipeline.errors import BusyError, DiskFullError, RequestError, UrushiError

Serving = Callable[..., BooruServer]


@pytest.fixture
def victim(corpus: Corpus) -> Post:
    """A post whose file is sound until a fault happens to it."""
    return sound(corpus)[-1]


def once(name: str, fault: Fault, times: int = 1) -> FaultPlan:
    """`fault` happens to the first requests for `name`."""
    return lambda hit: fault if hit.name == name and hit.nth <= times else None


def asked(booru: BooruServer, name: str) -> list[Hit]:
    return [hit for hit in booru.hits if hit.name == name]


COME_LATER = {
    "other bytes": (Fault(body=b"not the picture"), 1),
    "longer than stated": (Fault(body=b"x" * 90_000), 2),
    "empty": (Fault(body=b""), 1),
    "a page instead": (Fault(body=b"<html>Please log in</html>"), 1),
    "cut off": (Fault(cut=100), 1),
    "closed before the first byte": (Fault(cut=0), 3),
    "silence in the middle": (Fault(cut=2000, stall=5), 1),
    "no answer": (Fault(stall=5), 1),
    "500": (Fault(status=500), 2),
    "502": (Fault(status=502, body=b"<html>bad gateway</html>"), 3),
    "not there yet": (Fault(status=404), 1),
    "forbidden once": (Fault(status=403), 1),
    "429": (Fault(status=429, headers={"Retry-After": "0"}), 2),
    "429, garbled": (Fault(status=429, headers={"Retry-After": "soon"}), 1),
    "503, negative": (Fault(status=503, headers={"Retry-After": "-5"}), 1),
}
"""Name: (fault, how many requests for the file meet it)."""

NEVER_COME = {
    "never the md5": (Fault(body=b"other"), "bad_content: it is shorter", 3),
    "404": (Fault(status=404), "gone: HTTP 404", 2),
    "403": (Fault(status=403), "hidden: HTTP 403", 2),
    "451": (Fault(status=451), "gone: HTTP 451", 2),
    "500": (Fault(status=500), "failed: HTTP 500", 4),
    "cut off": (Fault(cut=7), "failed: the connection broke off", 4),
    "silence": (Fault(stall=5), "failed: it does not answer in time", 4),
    "noai": (Fault(headers={"X-Robots-Tag": "noindex, noai"}), "refused: .*training", 1),
    "a redirect to elsewhere": (
        Fault(status=302, headers={"Location": "http://10.0.0.1/x.png"}),
        "refused: .*none of the site's hosts",
        1,
    ),
}
"""Name: (fault that every request for the file meets, reason, how many requests are made)."""


def sound(corpus: Corpus) -> list[Post]:
    """Posts whose files come, one post each."""
    doubles = {post.md5 for post in corpus.posts if post.flaw == "double"}
    return [p for p in corpus.posts if p.md5 in corpus.wanted() and p.md5 not in doubles]


def test_files_that_come_at_another_try_are_had(
    downloading, serving: Serving, corpus: Corpus
) -> None:
    faults = {
        post.md5: case for post, case in zip(sound(corpus), COME_LATER.values(), strict=False)
    }
    assert len(faults) == len(COME_LATER)

    def plan(hit: Hit) -> Fault | None:
        fault, times = faults.get(hit.name, (None, 0))
        return fault if hit.nth <= times else None

    booru = serving(plan)
    downloading.write(booru.url)
    downloading.run()
    assert set(downloading.images()) == corpus.wanted() == set(downloading.files())
    requests_made = [len(asked(booru, md5)) for md5 in faults]
    assert requests_made == [times + 1 for _, times in COME_LATER.values()]
    assert not list(downloading.folder.root.rglob("*.part"))


def test_files_that_never_come_are_rows_with_reasons(
    downloading, serving: Serving, corpus: Corpus
) -> None:
    victims = dict(zip(NEVER_COME, sound(corpus), strict=False))
    faults = {victims[name].md5: case[0] for name, case in NEVER_COME.items()}
    booru = serving(lambda hit: faults.get(hit.name))
    downloading.write(booru.url)
    downloading.run()
    assert set(downloading.images()) == corpus.wanted() - set(faults) == set(downloading.files())
    for name, (_, words, times) in NEVER_COME.items():
        assert re.search(words, downloading.reason(victims[name].id)), name
        assert len(asked(booru, victims[name].md5)) == times, name
    assert not list(downloading.folder.root.rglob("*.part"))


def test_a_redirect_within_the_site_is_followed(
    downloading, serving: Serving, corpus: Corpus, victim: Post
) -> None:
    path = f"/original/{victim.md5[:2]}/{victim.md5[2:4]}/{victim.md5}.{victim.extension}?again"
    booru = serving(once(victim.md5, Fault(status=302, headers={"Location": path})))
    downloading.write(booru.url)
    downloading.run()
    assert set(downloading.images()) == corpus.wanted()


def test_retry_after_is_obeyed_and_the_pace_halved(
    downloading, serving: Serving, victim: Post, told
) -> None:
    booru = serving(once(victim.md5, Fault(status=429, headers={"Retry-After": "1"})))
    downloading.write(booru.url, requests_per_second=100, connections=1)
    downloading.run(told)
    first, second = asked(booru, victim.md5)
    files = [hit.at for hit in booru.hits if hit.kind == "file"]
    assert second.at - first.at >= 0.95
    after = [at for at in files if at > first.at]
    assert min(after) - first.at >= 0.95
    assert after[-1] - after[0] >= (len(after) - 1) * 0.02 * 0.95


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(status=500, body=b"timeout"), id="500"),
        pytest.param(Fault(body=b'[{"id": 1'), id="truncated JSON"),
        pytest.param(Fault(body=b"null"), id="null"),
        pytest.param(Fault(body=b'{"success": true}'), id="an object"),
        pytest.param(Fault(body=b""), id="nothing"),
        pytest.param(Fault(body=b'[{"id": 3, "tag_string": "a b"}]'), id="no categories"),
        pytest.param(Fault(body=b'[{"id": NaN}]'), id="NaN"),
        pytest.param(Fault(status=404), id="404"),
        pytest.param(Fault(cut=50), id="cut off"),
        pytest.param(Fault(stall=3), id="silence"),
        pytest.param(Fault(status=429, headers={"Retry-After": "0"}), id="429"),
    ],
)
def test_a_page_is_asked_for_again(
    downloading, serving: Serving, corpus: Corpus, fault: Fault
) -> None:
    booru = serving(lambda hit: fault if hit.kind == "page" and hit.nth == 1 else None)
    downloading.write(booru.url, limit=2)
    downloading.run()
    newest = {post.md5 for post in corpus.posts[-12:]}
    had = {*downloading.images(), *(row.md5 for row in downloading.failures() if row.md5)}
    assert len(had) == 2
    assert had <= newest


def test_the_count_is_only_for_the_bar(downloading, serving: Serving, corpus: Corpus) -> None:
    booru = serving(lambda hit: Fault(body=b"null") if hit.kind == "count" else None)
    downloading.write(booru.url)
    downloading.run()
    assert set(downloading.images()) == corpus.wanted()


def test_a_page_that_repeats_itself_is_not_read_for_ever(downloading, serving: Serving) -> None:
    first: list[bytes] = []

    def stale(hit: Hit) -> Fault | None:
        return Fault(body=first[0]) if hit.kind == "page" and hit.nth > 1 else None

    booru = serving(stale)
    with requests.Session() as session:
        session.trust_env = False
        query = "maki-e_box rating:g -status:deleted filetype:jpg,png,webp"
        page = session.get(
            booru.url + "/posts.json",
            params={"tags": query, "limit": 5},
            headers={"User-Agent": "test/1"},
        )
        first.append(page.content)
    downloading.write(booru.url)
    with pytest.raises(UrushiError, match="same page again"):
        downloading.run()


def test_what_is_not_a_booru_is_named(downloading, serving: Serving) -> None:
    booru = serving(lambda hit: Fault(body=b"<html>It works!</html>"))
    downloading.write(booru.url)
    with pytest.raises(UrushiError, match=rf"{booru.url}.*not danbooru's API.*\[download\].host"):
        downloading.run()


def test_a_challenge_is_not_gone_round(downloading, serving: Serving) -> None:
    challenge = Fault(status=403, headers={"cf-mitigated": "challenge"})
    booru = serving(lambda hit: challenge)
    downloading.write(booru.url)
    with pytest.raises(UrushiError, match="contact"):
        downloading.run()
    assert booru.count() == 1


def test_a_site_that_is_down_is_named_and_soon_given_up(downloading) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound and not listening: connections are refused.
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        downloading.write(url)
        with pytest.raises(
            UrushiError, match=f"{url} cannot be reached.*refused.*4 times"
        ) as error:
            downloading.run()
    assert error.value.exit_code == 1
    assert "run the same command again" in str(error.value)


def test_the_default_patience_with_a_site_that_is_down_is_some_seconds() -> None:
    patience, rng = Patience(), random.Random(1)
    assert 3 < sum(patience.wait(n, rng) for n in range(1, patience.tries)) < 15


def test_a_site_that_goes_down_stops_the_run_which_goes_on_later(
    downloading, corpus: Corpus
) -> None:
    with running(corpus=corpus) as first:
        stop = threading.Event()
        downloading.write(first.url, requests_per_second=60, connections=2)
        port = int(first.url.rpartition(":")[2])
        failed: list[UrushiError] = []

        def work() -> None:
            try:
                downloading.run()
            except UrushiError as error:
                failed.append(error)
            stop.set()

        thread = threading.Thread(target=work)
        thread.start()
        while first.count("file") < 15 and not stop.wait(0.005):
            pass
    thread.join()
    assert failed
    assert "cannot be reached" in str(failed[0])
    had = set(downloading.files())
    assert 5 < len(had) < len(corpus.wanted())
    with running(port, corpus=corpus) as again:
        downloading.run()
        assert set(downloading.images()) == corpus.wanted()
        assert not had & {hit.name for hit in again.hits}


def test_file_after_file_failing_is_the_sites_trouble(
    downloading, serving: Serving, corpus: Corpus
) -> None:
    trouble = [True]
    booru = serving(lambda hit: Fault(status=500) if trouble[0] and hit.kind == "file" else None)
    downloading.write(booru.url)
    with pytest.raises(UrushiError, match=r"5 files in a row.*HTTP 500"):
        downloading.run()
    trouble[0] = False
    downloading.run()
    assert set(downloading.images()) == corpus.wanted()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flaw": "deleted"}, "gone: its post is deleted"),
        ({"flaw": "hidden"}, "hidden"),
        ({"rating": "e"}, "refused: its rating is now explicit"),
        (None, "gone: its post is gone"),
    ],
)
def test_posts_that_change_between_page_and_file(
    downloading, serving: Serving, corpus: Corpus, victim: Post, change, words
) -> None:
    """A moderator acts when the file is first asked for, and it is a 404 from then on."""

    def moderate(hit: Hit) -> Fault | None:
        if hit.name != victim.md5:
            return None
        if change is None:
            booru.posts.pop(victim.id, None)
        else:
            booru.posts[victim.id] = replace(victim, **change)
        return Fault(status=404)

    booru = serving(moderate)
    downloading.write(booru.url)
    downloading.run()
    assert set(downloading.images()) == corpus.wanted() - {victim.md5}
    state = downloading.rows(f"SELECT state, reason FROM job WHERE md5 = '{victim.md5}'")
    assert f"{state[0][0]}: {state[0][1]}".startswith(words)


def test_a_replaced_file_comes_under_its_new_md5(
    downloading, serving: Serving, corpus: Corpus, victim: Post
) -> None:
    other = next(post for post in corpus.posts if post.rating == "e")

    def replaced(hit: Hit) -> Fault | None:
        if hit.name != victim.md5:
            return None
        booru.posts[victim.id] = replace(
            victim, md5=other.md5, extension=other.extension, bytes=other.bytes, size=other.size
        )
        return Fault(status=404)

    booru = serving(replaced)
    downloading.write(booru.url)
    downloading.run()
    images = downloading.images()
    assert set(images) == corpus.wanted() - {victim.md5} | {other.md5}
    assert images[other.md5].source == f"danbooru:{victim.id}"


def test_a_post_cannot_send_us_elsewhere(
    downloading, serving: Serving, corpus: Corpus, victim: Post
) -> None:
    """Neither to another machine nor to a file, whatever its file_url says."""
    urls = ["http://169.254.1.1/x.png", "file:///etc/passwd", "//10.0.0.1/x.png", "http://[::1"]

    def lying(hit: Hit) -> Fault | None:
        if hit.kind != "page" or hit.nth > 1:
            return None
        posts = [
            post_json(post, booru.url)
            for post in reversed(corpus.posts)
            if post.md5 in corpus.wanted()
        ][: len(urls) + 1]
        for post, url in zip(posts, urls, strict=False):
            post["file_url"] = url
        posts[-1]["file_url"] = posts[-1]["file_url"].removeprefix(booru.url)  # Relative: fine.
        return Fault(body=json.dumps(posts).encode())

    booru = serving(lying)
    downloading.write(booru.url, limit=len(urls) + 1)
    downloading.run()
    assert len(downloading.images()) == 1
    assert [f.reason.split(":")[1].split()[1] for f in downloading.failures()] == ["refused"] * 4


def test_orphans_of_a_killed_run_are_taken_up_and_bad_ones_replaced(
    downloading, booru: BooruServer, corpus: Corpus
) -> None:
    whole, rotten = sorted(corpus.wanted())[:2]
    posts = {post.md5: post for post in corpus.posts}
    for md5, content in ((whole, corpus.files[whole]), (rotten, b"zero after a power cut")):
        path = downloading.folder.original(md5, posts[md5].extension)
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        (path.parent / f".{md5}.1234.part").write_bytes(b"half")
    downloading.write(booru.url)
    downloading.run()
    assert set(downloading.images()) == corpus.wanted() == set(downloading.files())
    assert not asked(booru, whole)
    assert len(asked(booru, rotten)) == 1
    assert not list(downloading.folder.root.rglob("*.part"))


def test_a_file_that_was_deleted_comes_again(
    downloading, booru: BooruServer, corpus: Corpus
) -> None:
    downloading.write(booru.url)
    downloading.run()
    md5 = min(corpus.wanted())
    downloading.files()[md5].unlink()
    (downloading.folder.images / "receipt.json").unlink()
    before = booru.count()
    downloading.run()
    assert set(downloading.files()) == corpus.wanted()
    assert booru.count() == before + 1


def test_too_little_room_is_said_before_the_first_file(
    downloading, booru: BooruServer, monkeypatch
) -> None:
    monkeypatch.setattr(originals, "ROOM", 1e12)
    downloading.write(booru.url)
    with pytest.raises(DiskFullError, match="GB left") as error:
        downloading.run()
    assert error.value.exit_code == 3
    assert booru.count("file") == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_ends_with_its_own_error_and_leaves_nothing(
    tmp_path: Path, booru: BooruServer, corpus: Corpus, victim: Post, monkeypatch
) -> None:
    monkeypatch.setattr(Part, "resume", lambda part: None)  # The device is endless to read.
    folder = DatasetFolder(tmp_path)
    folder.parts.mkdir()
    part_of(folder, victim.md5).path.symlink_to("/dev/full")
    site = Site(dialect_of("danbooru"), booru.url, "urushi/test")
    promise = Promise(victim.md5, victim.bytes, 10**8)
    url = f"{booru.url}/original/{victim.md5[:2]}/{victim.md5[2:4]}/{victim.md5}.{victim.extension}"

    async def attempt() -> None:
        async with open_session(site, Patience(), 1) as session:
            part = await receive(
                session, site, url, promise, folder, Patience(), fresh=False, begun=True
            )
            await Landing(folder).land(part, promise)

    with pytest.raises(DiskFullError):
        asyncio.run(attempt())
    assert not folder.originals.exists()


def test_a_disk_that_fills_up_stops_the_run_and_more_room_ends_it(
    downloading, booru: BooruServer, corpus: Corpus, small_disk, monkeypatch
) -> None:
    """Another program may take what was free at the start: here the check before is left out."""
    monkeypatch.setattr(originals, "ROOM", 0)
    downloading.workspace = small_disk(480)
    downloading.write(booru.url)
    with pytest.raises(DiskFullError) as error:
        downloading.run()
    assert error.value.exit_code == 3
    before = downloading.files()  # Each whole, under its own name.
    assert set(before) < {post.md5 for post in corpus.posts}
    small_disk(64 * 1024)
    downloading.run()
    assert set(downloading.files()) == set(downloading.images()) == corpus.wanted()


def test_a_store_of_a_later_version_is_left_alone(downloading, booru: BooruServer) -> None:
    downloading.write(booru.url)
    downloading.run()
    with closing(sqlite3.connect(downloading.folder.posts)) as db:
        db.execute("PRAGMA user_version = 99")
    (downloading.folder.images / "receipt.json").unlink()
    with pytest.raises(UrushiError, match="schema 99"):
        downloading.run()


def test_a_damaged_store_is_named_with_the_remedy(
    downloading, booru: BooruServer, corpus: Corpus
) -> None:
    downloading.write(booru.url)
    downloading.run()
    (downloading.folder.images / "receipt.json").unlink()
    downloading.folder.posts.write_bytes(b"not a database" * 400)
    with pytest.raises(UrushiError, match=r"posts\.sqlite.*move it away"):
        downloading.run()
    downloading.folder.posts.rename(downloading.folder.root / "aside")
    files = booru.count("file")
    downloading.run()
    assert set(downloading.images()) == corpus.wanted()
    broken = sum(p.flaw in ("mismatch", "truncated", "missing") for p in corpus.posts)
    assert booru.count("file") - files <= 3 * broken  # The sound ones are taken up from the disk.


def test_when_nothing_can_be_had_it_says_why(downloading, serving: Serving) -> None:
    booru = serving(lambda hit: Fault(status=404) if hit.kind == "file" else None)
    downloading.write(booru.url, limit=4)
    with pytest.raises(UrushiError, match=r"Not one picture .*gone: HTTP 404") as error:
        downloading.run()
    assert not isinstance(error.value, RequestError)
    assert not (downloading.folder.images / "receipt.json").exists()


def test_two_runs_do_not_work_on_one_dataset(downloading, serving: Serving) -> None:
    booru = serving(lambda hit: Fault(stall=0.3) if hit.kind == "page" else None)
    downloading.write(booru.url, limit=2)
    thread = threading.Thread(target=downloading.run)
    thread.start()
    deadline = time.monotonic() + 5
    while not booru.count("page") and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(BusyError):
        downloading.run()
    thread.join()
