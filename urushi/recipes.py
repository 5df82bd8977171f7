"""Where the recipes that come with the program are."""

import sysconfig
from pathlib import Path

import demo
from pipeline.errors import UrushiError


def shipped(name: str) -> Path:
    """datasets/NAME: beside the code in a checkout, under share/ where a wheel was installed.

    Raises:
        UrushiError: in neither place.
    """
    places = (
        Path(demo.__file__).resolve().parent.parent / "datasets",
        Path(sysconfig.get_path("data")) / "share" / "urushi" / "datasets",
    )
    for place in places:
        if (place / name).is_dir():
            return place / name
    raise UrushiError(
        f"The recipes datasets/{name} are in neither of {', '.join(map(str, places))}. "
        "Install urushi again, or run it from a clone."
    )


def tiny_base() -> Path:
    """The folder with the tiny base's checkpoint and its configurations."""
    return Path(demo.__file__).resolve().parent / "base"
