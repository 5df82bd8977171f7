import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from pipeline.artefacts.gpus import gpus, turn

HOLDER = """
import sys, time
from pathlib import Path
from pipeline.artefacts.gpus import turn
with turn(print, ["0"], Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_which_cards_a_training_takes(tmp_path: Path) -> None:
    assert gpus({"CUDA_VISIBLE_DEVICES": "0"}, tmp_path) == (), "no card in this machine"
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidia1").touch()
    assert gpus({}, tmp_path) == ("0",)
    assert gpus({"CUDA_VISIBLE_DEVICES": "1,0"}, tmp_path) == ("1",)
    assert gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == ()
    assert gpus({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path) == ()
    assert gpus({"URUSHI_GPUS": "0, 1,0", "CUDA_VISIBLE_DEVICES": ""}, tmp_path) == ("0", "1")
    assert gpus({"URUSHI_GPUS": ""}, tmp_path) == ()


def test_the_second_waits_and_says_for_whom_until_the_first_is_gone(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "gpus")]
    first = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    with first.stdout:
        assert first.stdout.readline() == "held\n"
    told: list[str] = []
    waits, got = threading.Event(), threading.Event()

    def say(text: str) -> None:
        told.append(text)
        waits.set()

    def second() -> None:
        with turn(say, ["0"], tmp_path / "gpus"):
            got.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert waits.wait(30)
    assert told == [f"GPU 0 is used by process {first.pid}. Waiting for it …"]
    assert not got.is_set()
    # Killed, not asked: the lock dies with its holder.
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert got.wait(30)
    thread.join()


def test_another_card_is_free_and_no_card_takes_no_lock(tmp_path: Path) -> None:
    told: list[str] = []
    with turn(told.append, ["0"], tmp_path), turn(told.append, ["1"], tmp_path):
        pass
    with turn(told.append, [], tmp_path / "none"):
        pass
    assert told == []
    assert not (tmp_path / "none").exists()
    # Other users of the machine take turns on the same files.
    assert (tmp_path / "0.lock").stat().st_mode & 0o666 == 0o666
    assert (tmp_path / "0.lock").read_text().split()[0] == str(os.getpid())
