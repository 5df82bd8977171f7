"""A command as a child process that ends when we do, its lines followed as it writes them.

The child has a session of its own, so that Ctrl-C reaches only us and a signal to its group only
it. Its standard input is a pipe that nothing is ever written to: when this process is gone, however
it went, the pipe ends, and `Lifeline` in the child asks it to stop. A signal that the kernel sends
at a parent's death would come when the thread that started the child ends, and not through a
launcher between the two; the pipe is inherited by all.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.artefacts.files import translated

GRACE = 25.0
"""Seconds between asking and killing. Prefect kills a flow 30 seconds after asking it."""

POLL = 0.1
"""Seconds between two looks at the child's lines."""


def supervise(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    lines: Path,
    on_line: Callable[[str], None],
    asked: Callable[[], bool],
    grace: float = GRACE,
) -> int:
    """Runs `command` to its end and returns its code, negative for the signal that killed it.

    Args:
        log: what it prints is added to this file.
        lines: a file that the child adds lines to; those it adds now go to `on_line`, whole.
        asked: whether to stop it; it is then asked by SIGTERM, and killed after `grace` seconds.

    Raises:
        BaseException: whatever `on_line` or `asked` raise; the child has ended by then.
    """
    with translated(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        lines.touch()
        log.touch()
    with open(log, "ab") as output, open(lines, "rb") as followed:
        followed.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
        try:
            return _follow(child, followed.readline, on_line, asked, grace)
        finally:
            _end(child, grace)


def _follow(
    child: subprocess.Popen[bytes],
    readline: Callable[[], bytes],
    on_line: Callable[[str], None],
    asked: Callable[[], bool],
    grace: float,
) -> int:
    part = b""
    while True:
        code = child.poll()  # Before the lines are read: nothing that it wrote is missed.
        while piece := readline():
            part += piece
            if part.endswith(b"\n"):
                on_line(part.decode(errors="replace"))
                part = b""
        if code is not None:
            return code
        if asked():
            _end(child, grace)
        time.sleep(POLL)


def _end(child: subprocess.Popen[bytes], grace: float) -> None:
    """Asks the child's group to stop, waits, kills it. Nothing where it has ended."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if child.stdin is not None:
        # Also tells those whom a launcher started outside the group.
        child.stdin.close()


class Lifeline:
    """In the child: asks it to stop when standard input ends, kills it where it does not.

    Args:
        tell: asks for a stop.
        grace: seconds for it; an orphan must not go on holding a GPU.
    """

    def __init__(self, tell: Callable[[], None], grace: float = GRACE) -> None:
        self._tell, self._grace = tell, grace
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        while os.read(0, 1):
            pass
        self._tell()
        time.sleep(self._grace)
        os._exit(1)
