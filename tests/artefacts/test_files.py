import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.artefacts import files
from pipeline.errors import DiskFullError, RequestError, UrushiError

WRITER = """
import sys
from pathlib import Path
from pipeline.artefacts.files import write_json
number = 0
while True:
    number += 1
    write_json(Path(sys.argv[1]), {"number": number, "rows": [number] * 60_000})
"""


def test_a_killed_writer_leaves_the_old_file_or_the_whole_new_one(tmp_path: Path) -> None:
    path, chance = tmp_path / "state.json", random.Random(5)
    last = 0
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        while not path.exists() or json.loads(path.read_text())["number"] <= last:
            assert writer.poll() is None
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        content = json.loads(path.read_text())
        assert content["rows"] == [content["number"]] * 60_000
        path.unlink()
    files.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    """/dev/full refuses every write with ENOSPC, as a full disk does."""
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with (
        pytest.raises(DiskFullError, match="run the same command again") as caught,
        files.atomic(path) as temporary,
    ):
        temporary.symlink_to("/dev/full")
        temporary.write_text("new")
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_where_a_folder_should_be_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "workspace").write_text("")
    for path in (tmp_path / "workspace" / "a.txt", tmp_path / "workspace" / "builds" / "a.txt"):
        with pytest.raises(RequestError, match="--workspace"):
            files.write_text(path, "x")


def test_a_place_that_forbids_writing_is_told(tmp_path: Path) -> None:
    """/sys refuses new files to everyone, root too."""
    with pytest.raises(RequestError, match=r"cannot be written.*--workspace"):
        files.write_text(Path("/sys/urushi/a.txt"), "x")


def test_too_many_open_files_are_told(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        with pytest.raises(UrushiError, match=r"a\.txt cannot be opened.*ulimit -n"):
            files.write_text(tmp_path / "a.txt", "x")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_disk_that_fails_is_told(tmp_path: Path) -> None:
    with (
        pytest.raises(UrushiError, match=r"disk fails at .*a\.txt"),
        files.translated(tmp_path / "a.txt"),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_folders_are_made_and_content_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.json"
    files.write_json(path, {"漆": [1, 2.5, None]})
    assert files.read_json(path) == {"漆": [1, 2.5, None]}
    assert "漆" in path.read_text(encoding="utf-8")


def test_damaged_json_is_named(tmp_path: Path) -> None:
    for content in (b"{", b"\xff\xfe"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UrushiError, match=r"a\.json is damaged"):
            files.read_json(tmp_path / "a.json")


def test_sweep_takes_the_dead_ones_leftovers_only(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "deep").mkdir()
    dead = tmp_path / "deep" / f".a.json.{ended.pid}{files.TEMPORARY}"
    own = tmp_path / f".b.json.{os.getpid()}{files.TEMPORARY}"
    odd = tmp_path / f".c.json.x{files.TEMPORARY}"
    alive = tmp_path / f".d.json.{os.getppid()}{files.TEMPORARY}"
    kept = tmp_path / "e.part"
    for path in (dead, own, odd, alive, kept):
        path.write_text("")
    files.sweep(tmp_path)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == [alive, kept]
