import os
import subprocess
import sys

from flows.worker import children, end_gently

SAVES = """
import signal, sys, time
def save(*_):
    time.sleep(0.3)
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""
DEAF = SAVES.replace("save)", "signal.SIG_IGN)")


def start(program: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_runs_are_asked_and_waited_for_and_only_the_deaf_are_killed() -> None:
    with start(SAVES) as saves, start(DEAF) as deaf:
        assert {saves.pid, deaf.pid} <= set(children(os.getpid()))
        end_gently([saves.pid], 30.0)
        assert saves.wait() == 0
        assert saves.stdout is not None
        assert saves.stdout.read() == "saved\n"
        end_gently([deaf.pid], 1.0)
        assert deaf.wait() == -9
        end_gently([deaf.pid], 1.0)  # Long gone: nothing to do.
        assert not {saves.pid, deaf.pid} & set(children(os.getpid()))
