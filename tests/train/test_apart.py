"""Training in processes of its own: the same bytes, and what happens when either side dies."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.artefacts.locks import held, holder, is_locked
from pipeline.errors import Interrupted, RequestError, UrushiError
from pipeline.progress import Silent
from pipeline.recipe import BuildRecipe
from pipeline.recipe.rounds import Round
from pipeline.train import apart
from pipeline.train.apart import LOG, train_apart
from pipeline.train.plan import RoundTraining
from pipeline.train.product import LORA
from pipeline.train.resume import load_state
from pipeline.train.round import train_round

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]


def lora_of(training: RoundTraining) -> str:
    return hashlib.sha256((training.folder / LORA).read_bytes()).hexdigest()


class Seen(Silent):
    """Progress that is remembered."""

    def __init__(self) -> None:
        self.bars: list[tuple[str, int, int]] = []
        self.advanced = 0
        self.notes: list[str] = []
        self.on_note: Callable[[], None] = lambda: None

    def bar(self, what: str, total: int, unit: str, done: int = 0) -> "SeenBar":
        self.bars.append((what, total, done))
        return SeenBar(self)


class SeenBar:
    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def advance(self, count: int = 1) -> None:
        self._seen.advanced += count

    def note(self, text: str) -> None:
        self._seen.notes.append(text)
        self._seen.on_note()

    def __enter__(self) -> "SeenBar":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_child_makes_the_same_bytes_and_shows_its_progress(plan: TrainMaker) -> None:
    here = plan("here", steps=6)
    train_round(*here, Silent())
    recipe, training = plan("apart", steps=6, train={"process": "own", "log_every": 2})
    seen = Seen()
    receipt = train_round(recipe, training, seen)
    assert lora_of(training) == lora_of(here[1])
    assert receipt.summary["steps"] == 6
    assert seen.bars == [("train 1", 6, 0)] and seen.advanced == 6
    assert len(seen.notes) == 3 and "loss" in seen.notes[0]
    assert (training.folder / LOG).exists()


def test_the_child_reads_a_rounds_own_settings_without_the_other_rounds(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, training = plan("mixed")
    # As a round is whose encoders do not learn, in a build where others' do.
    recipe = recipe.model_copy(
        update={
            "rounds": recipe.rounds.model_copy(update={"encoders_apart": True}),
            "round": (Round(train={"min_snr_gamma": 5.0}),),
            "train": recipe.train.model_copy(update={"debiased": True}),
        }
    )

    def ends_at_once(command: list[str], environment: dict[str, str], log: Path, *_: object) -> int:
        log.write_text("gone\n")
        return 1

    monkeypatch.setattr(apart, "supervise", ends_at_once)
    with pytest.raises(UrushiError, match="ended with code 1"):
        train_apart(recipe, training, Silent())
    told, _ = apart.read_task(training.folder)
    assert told.train == recipe.train


@pytest.mark.drill
def test_what_the_child_refuses_is_refused_here(plan: TrainMaker) -> None:
    recipe, training = plan("none", train={"process": "own"}, training={"pictures": ()})
    with pytest.raises(RequestError, match="no pictures to train on") as caught:
        train_round(recipe, training, Silent())
    assert caught.value.exit_code == 2


def test_a_crash_is_told_with_the_end_of_the_log(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, training = plan("crash", train={"process": "own"})
    script = "import os, sys; print('out of registers', flush=True); os.kill(os.getpid(), 11)"
    monkeypatch.setattr(apart, "_command", lambda *_: [sys.executable, "-c", script])
    with pytest.raises(UrushiError, match=r"by signal 11[\s\S]*out of registers"):
        train_round(recipe, training, Silent())


@pytest.mark.drill
def test_asked_to_stop_the_child_saves_and_both_end(plan: TrainMaker) -> None:
    """SIGTERM to this process; nobody else here listens to it."""
    recipe, training = plan("asked", steps=2000, train={"process": "own", "log_every": 1})
    seen = Seen()
    seen.on_note = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"Stopped train 1 after step \d+ of 2000"):
        train_round(recipe, training, seen)
    state = load_state(training.folder, Silent().say)
    assert state is not None and state.step >= 1
    assert not is_locked(training.folder)


@pytest.mark.drill
def test_an_exception_here_ends_the_child(plan: TrainMaker) -> None:
    recipe, training = plan("raised", steps=2000, train={"process": "own", "log_every": 1})
    seen, pids = Seen(), []

    def fail() -> None:
        found = holder(training.folder / ".lock")
        assert found is not None
        pids.append(found.pid)
        raise ZeroDivisionError

    seen.on_note = fail
    with pytest.raises(ZeroDivisionError):
        train_apart(recipe, training, seen)
    assert not psutil.pid_exists(pids[0])
    assert load_state(training.folder, Silent().say) is not None


PARENT = """
import sys
from pathlib import Path
from pipeline.progress import Silent
from pipeline.train.apart import read_task, train_apart
recipe, training = read_task(Path(sys.argv[1]))
train_apart(recipe, training, Silent())
"""


@pytest.mark.drill
def test_an_orphan_saves_and_ends(plan: TrainMaker, tmp_path: Path) -> None:
    """SIGKILL of the parent: the child's standard input ends, so it saves and leaves the GPU."""
    recipe, training = plan("orphan", steps=2000, train={"process": "own", "save_every": 1000})
    training.folder.mkdir()
    (training.folder / apart.RECIPE).write_text(recipe.model_dump_json())
    task = apart.TypeAdapter(RoundTraining).dump_json(training)
    (training.folder / apart.TASK).write_bytes(task)
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(training.folder)])
    lines = training.folder / apart.LINES
    wait_until(lambda: lines.exists() and "note" in lines.read_text())
    child = holder(training.folder / ".lock")
    assert child is not None and child.pid != parent.pid
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not is_locked(training.folder), 60)
    state = load_state(training.folder, Silent().say)
    assert state is not None and 0 < state.step < 2000
    wait_until(lambda: not psutil.pid_exists(child.pid), 60)


def test_a_next_run_waits_for_the_orphan(tmp_path: Path) -> None:
    said: list[str] = []
    progress = Silent()
    progress.say = said.append  # type: ignore[method-assign]
    taken, free = threading.Event(), threading.Event()

    def hold() -> None:
        with held(tmp_path / ".lock"):
            taken.set()
            free.wait(0.5)

    holding = threading.Thread(target=hold)
    holding.start()
    taken.wait()
    apart._await_orphan(tmp_path, progress)
    assert not is_locked(tmp_path)
    holding.join()
    assert len(said) == 1 and "earlier run" in said[0]
