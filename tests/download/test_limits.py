"""Machines that have no file to spare: every run ends, and says what to do."""

import asyncio
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from demo.booru import BooruServer
from demo.corpus import Corpus
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.landing import Landing
from pipeline.download.parts import part_of
from pipeline.download.placing import MANY, Landed
from pipeline.download.quarantine import Promise
from pipeline.errors import UrushiError

FULL = OSError(errno.EMFILE, "Too many open files")


def limited(command: Sequence[str | Path], files: int) -> "subprocess.CompletedProcess[str]":
    """As after `ulimit -n`."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=30,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )


def ends_well(downloading, corpus: Corpus, files: int) -> None:
    command = [Path(sys.executable).with_name("urushi"), "download", downloading.recipe]
    done = limited([*command, "--workspace", downloading.workspace], files)
    said = done.stdout + done.stderr
    assert "Traceback" not in said, files
    if done.returncode == 0:
        assert set(downloading.images()) == corpus.wanted() == set(downloading.files()), files
        return
    assert done.returncode == 1, said
    assert "Too many open files. Raise the bound (`ulimit -n 1024`)" in said, files
    assert "run the same command again" in said, files
    with suppress(FileNotFoundError):  # Not a file was blamed for it.
        known = {post.md5 for post in corpus.posts if post.flaw}
        ended = downloading.rows("SELECT md5 FROM job WHERE state NOT IN ('planned', 'have')")
        assert {md5 for (md5,) in ended} <= known, files


@pytest.mark.parametrize("limits", [(22, 31), pytest.param(range(16, 40), marks=pytest.mark.drill)])
def test_few_files_end_a_run_and_more_of_them_finish_it(
    downloading, booru: BooruServer, corpus: Corpus, limits: Sequence[int]
) -> None:
    downloading.write(booru.url, connections=8)
    for files in limits:
        ends_well(downloading, corpus, files)
    downloading.run()
    assert set(downloading.images()) == corpus.wanted() == set(downloading.files())


def test_whoever_waits_for_files_to_land_hears_of_what_stops_them(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their folder cannot be opened to sync it: no error of one of them, and they wait for all."""
    folder = DatasetFolder(tmp_path)
    known = os.open

    def full(path, *asked, **named):
        if path == folder.root:
            raise FULL
        return known(path, *asked, **named)

    monkeypatch.setattr(os, "open", full)

    async def land() -> list[Landed | BaseException]:
        landing = Landing(folder)
        arrivals = []
        for md5 in sorted(corpus.wanted())[:MANY]:
            part = part_of(folder, md5)
            part.restart(None, None)
            part.write(corpus.files[md5])
            arrivals.append(landing.land(part, Promise(md5, None, 10**8)))
        async with asyncio.timeout(10):
            return await asyncio.gather(*arrivals, return_exceptions=True)

    ends = asyncio.run(land())
    assert len(ends) == MANY
    assert all(isinstance(end, UrushiError) and "ulimit -n" in str(end) for end in ends)


def test_a_question_that_cannot_be_sent_is_no_sites_trouble(
    downloading, booru: BooruServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def full(*place: object, **options: object) -> None:
        asked.append(place)
        raise FULL

    monkeypatch.setattr("pipeline.download.connecting.socket.socket", full)
    downloading.write(booru.url)
    words = f"No connection to {booru.url} can be opened: Too many open files.*ulimit -n"
    with pytest.raises(UrushiError, match=words):
        downloading.run()
    assert len(asked) == 1
