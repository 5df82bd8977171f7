"""The one error of pictures, in a file that costs nothing to import."""

from pipeline.errors import UrushiError


class Unreadable(UrushiError):
    """One picture that cannot be used. The message is the reason in its row of failures."""
