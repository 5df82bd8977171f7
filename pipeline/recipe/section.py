"""What recipe sections share: frozen, unknown keys refused, paths meant from the recipe's place."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo


class Section(BaseModel):
    """One table of a recipe."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def from_recipe_folder(path: Path, info: ValidationInfo) -> Path:
    """`path`, where it is relative, in the folder of the recipe that is read."""
    folder = (info.context or {}).get("folder")
    path = path.expanduser()
    return path if folder is None or path.is_absolute() else (Path(folder) / path).resolve()


def _not_empty(path: object) -> object:
    if path == "":
        # It would quietly mean the recipe's own folder.
        raise ValueError('is empty; write "." for the recipe\'s own folder')
    return path


Positive = Annotated[float, Field(gt=0)]

RecipePath = Annotated[Path, BeforeValidator(_not_empty), AfterValidator(from_recipe_folder)]
"""A path; a relative one is meant from the folder of the recipe that names it."""


def _matching(pattern: str, sentence: str) -> AfterValidator:
    """A text that `pattern` fits whole, or what is said of it."""

    def fits(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"{sentence} (it is {text!r})")
        return text

    return AfterValidator(fits)


Word = Annotated[str, _matching(r"[^,\s]+", "must be one word without a comma")]

DaskAddress = Annotated[
    str, _matching("(tcp|tls)://.+", 'must be an address such as "tcp://127.0.0.1:8786"')
]

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""A name that becomes a folder: lower-case letters, digits, `_` and `-`."""
