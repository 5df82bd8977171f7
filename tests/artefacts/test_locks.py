import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.artefacts.locks import held, in_turn, is_locked, locked
from pipeline.errors import BusyError

HOLDER = """
import sys, time
from pathlib import Path
from pipeline.artefacts.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time_and_a_killed_one_leaves_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    assert not is_locked(folder)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
    assert is_locked(folder)
    with pytest.raises(BusyError, match=f"process {holder.pid}") as caught, locked(folder):
        pass
    assert str(folder) in str(caught.value)
    holder.kill()
    holder.wait()
    assert not is_locked(folder)
    with locked(folder):
        assert is_locked(folder)
    assert not is_locked(folder)


def test_taking_it_clears_half_written_files(tmp_path: Path) -> None:
    (tmp_path / ".x.json.1999999999.part").write_text("half")
    with locked(tmp_path):
        assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_looking_never_makes_a_taker_fail(tmp_path: Path) -> None:
    """`urushi status` asks by taking the lock for a blink; a stage that starts then goes on."""
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            is_locked(tmp_path)

    with locked(tmp_path):
        pass
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in range(300):
            with locked(tmp_path):
                pass
    finally:
        stop.set()
        watcher.join()


def test_locks_of_two_names_do_not_meet(tmp_path: Path) -> None:
    with held(tmp_path / ".run.lock"), locked(tmp_path):
        assert is_locked(tmp_path, ".run.lock")
        with pytest.raises(BusyError), held(tmp_path / ".run.lock"):
            pass


def test_a_folder_is_held_in_turn_whatever_becomes_of_what_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "shards" / "00001"
    folder.mkdir(parents=True)
    order = []

    def second() -> None:
        with in_turn(folder):
            order.append("second")

    waiting = threading.Thread(target=second)
    with in_turn(folder):
        waiting.start()
        shutil.rmtree(folder)
        folder.mkdir()
        waiting.join(0.3)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    assert list(folder.iterdir()) == []
