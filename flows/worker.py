"""A worker of Prefect's that ends its runs gently: they are asked, save, and are waited for.

    python -m flows.worker POOL       what `urushi up` starts; ends when its standard input does

Prefect's own worker, told to stop, takes its runs with it before any of them can save. This one
stands beside it: asked to stop, it halts the worker where it is, which so takes up no other run in
a place that gets free, and asks the runs.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts.locks import host

SAVE_SECONDS = 120.0
"""For a run that was asked to end: one training step and the writing of its resume point."""
LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Worker:
    """A worker in a process of its own."""

    process: subprocess.Popen[bytes]

    def end(self) -> None:
        """Ends it and its runs, and waits for their end."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()


def start(pool: str, log: Path) -> Worker:
    """Starts a worker for `pool`, of the server in the environment. It ends when we do."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.worker", pool],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Worker(process)


def children(parent: int) -> list[int]:
    """The processes that `parent` started and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            # "PID (any name) STATE PARENT …"
            state, of = (path / "stat").read_text().rpartition(") ")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if int(of) == parent and state != "Z":
            found.append(int(path.name))
    return found


def end_gently(processes: Sequence[int], seconds: float) -> None:
    """Asks `processes` to end, waits up to `seconds`, and kills those that have not."""
    for number in processes:
        _signal(number, signal.SIGTERM)
    end = time.monotonic() + seconds
    while any(_runs(number) for number in processes):
        if time.monotonic() > end:
            for number in processes:
                _signal(number, signal.SIGKILL)
            return
        time.sleep(LOOK_SECONDS)


def _signal(number: int, what: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(number, what)


def _runs(number: int) -> bool:
    try:
        text = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(") ")[2][:1] != "Z"


def main() -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def end_with_parent() -> None:
        while os.read(0, 1):
            pass
        stop.set()

    threading.Thread(target=end_with_parent, daemon=True).start()
    words = ["worker", "start", "--pool", sys.argv[1], "--type", "process", "--name", host()]
    # A session of its own, so that one signal reaches all that is left of it.
    worker = subprocess.Popen(
        [sys.executable, "-m", "prefect", *words], stdin=subprocess.DEVNULL, start_new_session=True
    )
    while worker.poll() is None and not stop.wait(LOOK_SECONDS):
        pass
    if worker.poll() is None:
        worker.send_signal(signal.SIGSTOP)
        end_gently(children(worker.pid), SAVE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    sys.exit(0 if stop.is_set() else worker.returncode or 1)


if __name__ == "__main__":
    main()
