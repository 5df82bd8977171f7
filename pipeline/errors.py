"""The exception tree. Every error that a user can meet says what, where and what to do.

The front door turns `exit_code` into the process's exit code and prints the message alone; a
traceback is shown only for our own bugs.
"""

import re

MEMORY = re.compile(
    r"[Cc]an(?:'t|not) allocate memory(?! in static)|CU(?:BLAS|DNN)_STATUS_ALLOC_FAILED"
    r"|failed to map segment from shared object|could not create a primitive$"
)
"""What a refusal of memory says that has no class of its own: torch's on a CPU, CUDA's libraries',
the system's, the loader's and oneDNN's."""

LONGEST = 200
"""Characters of a library's words that are shown."""


class UrushiError(Exception):
    """Something failed; what was finished before it stands. Exit code 1."""

    exit_code = 1


class RequestError(UrushiError):
    """The request is wrong: a recipe, an argument, a file it names. Exit code 2."""

    exit_code = 2


class RecipeError(RequestError):
    """A recipe that cannot be read or does not say something that can be done."""


class DiskFullError(UrushiError):
    """No room left on the disk. Nothing finished is lost; free some and run again. Exit code 3."""

    exit_code = 3


class GateStopped(UrushiError):
    """The gate stopped the build; the rounds so far stand, final files are written. Exit code 4."""

    exit_code = 4


class BusyError(UrushiError):
    """Another process works on the same folder."""


class Interrupted(UrushiError):
    """Someone asked it to stop; it is saved, and goes on when run again. Exit code 130."""

    exit_code = 130


class NeedsDecision(UrushiError):
    """A round waits for a person, who looks at it and says how to go on. Exit code 5."""

    exit_code = 5

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.round = number


def memory_refused(error: BaseException) -> str | None:
    """The words by which `error`, or what it came of, says that memory was refused; None where
    neither does, as none of ours does."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, UrushiError):
        lines = [line.strip() for line in str(found).splitlines() if line.strip()]
        # torch's by its name: whoever asks may have no torch.
        if isinstance(found, MemoryError) or type(found).__name__ == "OutOfMemoryError":
            return (lines or ["Python was refused some"])[0][:LONGEST]
        if said := [line for line in lines if MEMORY.search(line)]:
            return said[0][:LONGEST]
        found = found.__cause__
    return None
