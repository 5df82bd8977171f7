"""`urushi up`: Prefect's server, a worker and the doctor on this machine, until Ctrl-C.

Where PREFECT_API_URL names a server, only the worker and the doctor. All of it logs to
WORKSPACE/prefect/up.log. What ends is started again; when this process ends, however it does, so
does everything else, and runs that were going on are saved. The next `urushi up` goes on with them.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType

from flows import server, worker
from flows.address import UP_FILE, UP_LOCK
from flows.settings import prepare
from pipeline.artefacts.files import write_json
from pipeline.artefacts.locks import held
from pipeline.artefacts.workspace import Workspace
from pipeline.errors import UrushiError

PORT = 4200
LOG = "up.log"
LOOK_SECONDS = 0.5
DOCTOR_SECONDS = 20.0
AGAIN_SECONDS = 5.0
"""Between an unexpected end and the next start."""


def up(
    workspace: Path,
    say: Callable[[str], None],
    port: int = PORT,
    *,
    work: bool = True,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Runs until SIGINT or SIGTERM.

    Args:
        say: gets a line for whatever a person should know.
        work: whether to run a worker; without, only the server and the doctor.
        ready: called once the server answers; what it raises ends all of it.

    Raises:
        BusyError: `urushi up` runs for this workspace already.
        RequestError: the port is taken.
        UrushiError: the server does not start.
    """
    home = prepare(workspace, standing=True)
    stop = threading.Event()

    def hear(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with held(home / UP_LOCK):
            _Household(workspace, home, port, work, _logged(home / LOG, say)).keep(stop, ready)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _logged(path: Path, say: Callable[[str], None]) -> Callable[[str], None]:
    """Says a line, and writes it into the log with the time."""

    def tell(text: str) -> None:
        say(text)
        with open(path, "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} urushi up: {text}\n")

    return tell


class _Household:
    """The processes, and what is done for them again and again."""

    def __init__(
        self, workspace: Path, home: Path, port: int, work: bool, tell: Callable[[str], None]
    ) -> None:
        self._workspace, self._home, self._port = Workspace(workspace.resolve()), home, port
        self._work, self._tell = work, tell
        self._foreign = os.environ.get("PREFECT_API_URL")
        self._server: server.Server | None = None
        self._worker: worker.Worker | None = None
        self._due: dict[str, float] = {}

    def keep(self, stop: threading.Event, ready: Callable[[], None]) -> None:
        with self._standing():
            self._tell(f"Ready: {os.environ['PREFECT_API_URL'].removesuffix('/api')}")
            ready()
            while not stop.wait(LOOK_SECONDS):
                self._again("server", self._keep_server)
                self._again("doctor", self._examine)
                if self._work:
                    self._again("worker", self._keep_worker)
            self._tell("Ending; runs that go on are saved first …")

    @contextmanager
    def _standing(self) -> Iterator[None]:
        """With a server that answers; ends all that was started."""
        # An address of before: nobody is to be sent there while the server starts.
        (self._home / UP_FILE).unlink(missing_ok=True)
        try:
            if self._foreign is None:
                self._tell(f"Starting Prefect; its log is {self._home / LOG}")
                self._server = self._start_server()
                os.environ["PREFECT_API_URL"] = self._server.address
                import_module("prefect")
                self._server.wait()
            write_json(
                self._home / UP_FILE, {"api": os.environ["PREFECT_API_URL"], "pid": os.getpid()}
            )
            yield
        finally:
            if self._worker is not None:
                self._worker.end()
            if self._server is not None:
                self._server.end()
                os.environ.pop("PREFECT_API_URL", None)
            self._tell("Ended. `urushi up` goes on with what was not finished.")

    def _start_server(self) -> server.Server:
        return server.start(self._home, self._port, standing=True, log=LOG)

    def _again(self, what: str, act: Callable[[], float]) -> None:
        """Calls `act` when it is due; it says in how many seconds it is again."""
        now = time.monotonic()
        if now < self._due.get(what, 0.0):
            return
        try:
            wait = act()
        except UrushiError as error:
            self._tell(f"{what}: {error}")
            wait = AGAIN_SECONDS
        self._due[what] = time.monotonic() + wait

    def _keep_server(self) -> float:
        if self._server is not None and self._server.process.poll() is not None:
            self._tell(f"The server ended ({self._server.process.returncode}); starting it again.")
            self._server.end()
            self._server = self._start_server()
            self._server.wait()
        return 0.0

    def _keep_worker(self) -> float:
        if self._worker is not None and self._worker.process.poll() is None:
            return 0.0
        from flows.pool import POOL, connected, ensure_pool

        if self._worker is None:
            # What `urushi drain` paused goes on. A worker that dies during a drain changes nothing.
            with connected() as client:
                ensure_pool(client)
        else:
            self._tell(f"The worker ended ({self._worker.process.returncode}); starting it again.")
        self._worker = worker.start(POOL, self._home / LOG)
        return AGAIN_SECONDS

    def _examine(self) -> float:
        from flows.doctor import examine

        # The first look comes before the first worker, which finds runs that it can take up.
        for finding in examine(self._workspace, first=self._worker is None):
            self._tell(f"doctor: {finding}")
        return DOCTOR_SECONDS
