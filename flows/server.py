"""The Prefect server: a process of its own on loopback that ends with the process that started it.

    with started(home) as server: ...          # server.address is "http://127.0.0.1:PORT/api"
    python -m flows.server SOCKET              # what it starts; ends when its standard input does

Prefect can start a temporary server itself, but that one outlives a killed run for ever. Ours reads
its standard input, which the operating system closes when the run is gone, however it went.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts.files import translated
from pipeline.errors import RequestError, UrushiError

LOG = "server.log"
START_SECONDS = 300.0
"""The first start sets up the database: some 10 seconds, a minute on a busy machine."""
STOP_SECONDS = 5.0
FINAL = {"PREFECT__SERVER_FINAL": "1"}
"""Prefect's word for: this process makes one server, so it may spare itself copies."""
EPHEMERAL = {"PREFECT__SERVER_EPHEMERAL": "1"}
"""No schedules, no UI."""


@dataclass(frozen=True)
class Server:
    """A server that is starting or running."""

    address: str
    """Of its API."""
    log: Path
    process: subprocess.Popen[bytes]

    def wait(self, seconds: float = START_SECONDS) -> None:
        """Returns once it answers.

        Raises:
            UrushiError: it ended, or does not answer within `seconds`; names its log.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=10) as response:
                    if response.status == 200:
                        return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise UrushiError(
            f"Prefect's server did not start; {self.log} says why. "
            "Stages can be run by hand without it: urushi download, caption, resize, …"
        )

    def end(self) -> None:
        """Ends it, and waits for its end."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start(home: Path, port: int = 0, *, standing: bool = False, log: str = LOG) -> Server:
    """Starts a server on loopback, logging to home/LOG. It ends when this process does.

    Does not wait for it: `Server.wait` does, once the caller has imported prefect meanwhile.

    Args:
        port: 0 takes a free one.
        standing: with schedules, vacuum and UI; else only what a run in this process needs.

    Raises:
        RequestError: `home` cannot be written, or something listens on `port` already.
    """
    path = home / log
    with translated(path):
        home.mkdir(parents=True, exist_ok=True)
        output = open(path, "ab")  # noqa: SIM115 - closed below, when the child has it
    # The child takes over a socket that listens already, so no other process can take its port.
    with output, _listener(port) as listener:
        taken = listener.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(listener.fileno())],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=[listener.fileno()],
            # A Ctrl-C is for the run, which still has its end to report to the server.
            start_new_session=True,
            # The pages in the browser ask the API where the server says that it is.
            env=os.environ
            | FINAL
            | ({"PREFECT_SERVER_API_PORT": str(taken)} if standing else EPHEMERAL),
        )
    return Server(f"http://127.0.0.1:{taken}/api", path, process)


@contextmanager
def started(home: Path) -> Iterator[Server]:
    """A server for a run in this process, ended with it. Raises as `start` does."""
    server = start(home)
    try:
        yield server
    finally:
        server.end()


def _listener(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise RequestError(
            f"Port {port} of this machine cannot be listened on: {error.strerror}. "
            "Something else listens there: stop it, or choose another with --port."
        ) from None


def _end_with_parent() -> None:
    # Not through sys.stdin: its lock would be missed at an interpreter's end that comes first.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(1)


def main() -> None:
    import uvicorn

    threading.Thread(target=_end_with_parent, daemon=True).start()
    application = "prefect.server.api.server:create_app"
    config = uvicorn.Config(application, factory=True, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    main()
