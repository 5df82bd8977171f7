"""Runs that are stopped, and folders that others touch meanwhile: the end is the same."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from demo.booru import BooruServer
from demo.booru_faults import Fault, Hit
from demo.corpus import Corpus
from pipeline.download.parts import part_of
from pipeline.errors import UrushiError


def started(downloading) -> "subprocess.Popen[str]":
    """`urushi download`, once it has asked for some files."""
    return subprocess.Popen(
        [
            *(Path(sys.executable).with_name("urushi"), "download", downloading.recipe),
            *("--workspace", downloading.workspace),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_files(booru: BooruServer, process: "subprocess.Popen[str]", count: int = 5) -> None:
    while booru.count("file") < count:
        assert process.poll() is None
        time.sleep(0.01)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_once_or_twice_loses_nothing(
    downloading, booru: BooruServer, corpus: Corpus, times: int
) -> None:
    downloading.write(booru.url, requests_per_second=20)
    process = started(downloading)
    wait_for_files(booru, process)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Run the same command again to go on." in told and "Traceback" not in told
    had = set(downloading.files())
    before = booru.count()
    assert had
    downloading.write(booru.url)
    downloading.run()
    assert set(downloading.images()) == corpus.wanted() == set(downloading.files())
    assert not had & {hit.name for hit in booru.hits[before:]}


def test_a_run_that_sleeps_for_a_while_goes_on(
    downloading, booru: BooruServer, corpus: Corpus
) -> None:
    """As a laptop does that is closed. Turns that were missed meanwhile are not made up for."""
    downloading.write(booru.url, requests_per_second=50, connections=1)
    process = started(downloading)
    wait_for_files(booru, process)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(0.8)
    woken = time.monotonic()
    os.kill(process.pid, signal.SIGCONT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert set(downloading.images()) == corpus.wanted()
    after = [hit.at for hit in booru.hits if hit.kind == "file" and hit.at > woken]
    assert after[-1] - after[0] >= (len(after) - 2) * 0.02 * 0.95


@pytest.mark.parametrize("connections", [1, 4])
def test_folders_that_are_removed_meanwhile_are_made_again(
    downloading, serving, corpus: Corpus, connections: int
) -> None:
    removed = []

    def tidy(hit: Hit) -> Fault | None:
        if hit.kind == "file" and len(removed) < 2 and hit.nth == 1 and booru.count("file") > 9:
            for folder in (downloading.folder.originals, downloading.folder.parts):
                shutil.rmtree(folder, ignore_errors=True)
            removed.append(hit)
        return None

    booru = serving(tidy)
    downloading.write(booru.url, connections=connections)
    for _ in range(3):
        with suppress(OSError, UrushiError):  # It may come between a folder and its file.
            downloading.run()
    assert len(removed) == 2
    (downloading.folder.images / "receipt.json").unlink()
    downloading.run()  # Sees what was removed after it was looked at.
    assert set(downloading.images()) == corpus.wanted() == set(downloading.files())


def test_a_part_that_is_longer_than_its_file_is_begun_anew(
    downloading, booru: BooruServer, corpus: Corpus
) -> None:
    md5 = min(corpus.wanted())
    downloading.folder.parts.mkdir(parents=True)
    part_of(downloading.folder, md5).path.write_bytes(corpus.files[md5] + bytes(600_000))
    downloading.write(booru.url)
    downloading.run()
    assert downloading.files()[md5].read_bytes() == corpus.files[md5]
    assert set(downloading.images()) == corpus.wanted()
    assert not list(downloading.folder.parts.iterdir())


def test_a_redirect_that_leads_to_itself_is_given_up(downloading, serving, corpus: Corpus) -> None:
    md5 = min(corpus.wanted())
    round_and_round = Fault(status=302, headers={"Location": "?again"})
    booru = serving(lambda hit: round_and_round if hit.name == md5 else None)
    downloading.write(booru.url)
    downloading.run()
    assert set(downloading.images()) == corpus.wanted() - {md5}
    assert any(f.md5 == md5 and "failed: HTTP 302" in f.reason for f in downloading.failures())
    assert len([hit for hit in booru.hits if hit.name == md5]) == 4 * 4  # Tries, of four hops.


def test_a_name_that_no_one_knows_is_the_networks_trouble(downloading) -> None:
    downloading.write("http://no-such-host.invalid")
    with pytest.raises(UrushiError, match=r"no-such-host\.invalid cannot be reached"):
        downloading.run()
    assert not downloading.rows("SELECT 1 FROM job")
