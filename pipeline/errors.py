"""The exception tree. Every error that a user can meet says what, where and what to do.

The front door turns `exit_code` into the process's exit code and prints the message alone; a
traceback is shown only for our own bugs.
"""


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
