"""A Python process of ours beside this one, which answers what it is asked through a pipe."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any


class Worker:
    """One process, from its start to its end. One thread at a time uses its pipe."""

    def __init__(
        self, serve: Callable[..., None], *arguments: object, files: Sequence[int] = ()
    ) -> None:
        """Starts it: `serve`, a function of a module, is called there with the number of its end
        of the pipe and with `arguments` as text. It has our `files` under the same numbers.

        Raises:
            OSError: it cannot be started.
        """
        self.pipe, theirs = Pipe()
        code = f"import sys; from {serve.__module__} import {serve.__name__} as serve; "
        with theirs:
            end = theirs.fileno()
            self._process = subprocess.Popen(
                # -P: a file in the folder that we stand in must hide no module.
                [sys.executable, "-P", "-c", code + "serve(*sys.argv[1:])", str(end)]
                + [str(argument) for argument in arguments],
                pass_fds=[end, *files],
                stdin=subprocess.DEVNULL,
                # What it inherits of threads would only map memory that is counted against it.
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(sys.path),
                    "OPENBLAS_NUM_THREADS": "1",
                    "OMP_NUM_THREADS": "1",
                },
                # Ctrl-C is the parent's to answer; this one ends when the pipe does.
                start_new_session=True,
            )

    def how_it_ended(self) -> str:
        """A signal's name or an exit code, of a process whose end of the pipe is closed."""
        code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """Ends the process. Whoever waits at the pipe is told by the end of it."""
        self._process.kill()
        self._process.wait()


def answer_all(descriptor: str, answer: Callable[[Any], object]) -> None:
    """The process's side: says "ready", then answers until the other end of the pipe is closed."""
    with Connection(int(descriptor)) as pipe, suppress(EOFError, ConnectionError):
        pipe.send("ready")
        while True:
            pipe.send(answer(pipe.recv()))
