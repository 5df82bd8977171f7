import os
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from flows.alive import KEEP_SECONDS, alive, count_return, returns, running, sign, sweep_old
from pipeline.artefacts.locks import host
from pipeline.artefacts.workspace import Workspace
from pipeline.errors import BusyError


def test_a_run_lives_while_its_lock_is_held(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    assert sign(place, "run").holder is None
    with alive(place, "run"):
        seen = sign(place, "run")
        assert seen.alive
        assert seen.holder is not None
        assert (seen.holder.pid, seen.holder.host) == (os.getpid(), host())
        assert list(running(place)) == ["run"]
        with pytest.raises(BusyError, match=str(os.getpid())), alive(place, "run"):
            pass
    seen = sign(place, "run")
    assert not seen.alive
    assert seen.holder is not None, (
        "who it was is known after the end: whose run it is to bring back"
    )
    assert running(place) == {}


def test_a_run_that_is_resumed_waits_for_the_process_that_suspended_it(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    with ExitStack() as suspended:
        suspended.enter_context(alive(place, "run"))
        ending = threading.Timer(1.0, suspended.close)
        ending.start()
        with alive(place, "run", patience=60.0):
            assert not ending.is_alive()
            assert sign(place, "run").alive


def test_returns_are_counted_over_restarts(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    assert returns(place, "run") == ()
    count_return(place, "run", 10.0)
    count_return(place, "run", 20.0)
    assert returns(place, "run") == (10.0, 20.0)


def test_locks_of_long_ago_are_cleared_but_not_those_that_are_held(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    with alive(place, "gone"):
        pass
    with alive(place, "held"):
        later = place.flow_runs.joinpath("held.lock").stat().st_mtime + KEEP_SECONDS + 60
        sweep_old(place, later)
        assert [path.name for path in place.flow_runs.iterdir()] == ["held.lock"]
