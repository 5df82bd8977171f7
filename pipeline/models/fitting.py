"""The libraries' errors and noise, while they load, into one sentence and silence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from pipeline.errors import RequestError, memory_refused
from pipeline.models.components import Component

MISFITS = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    RuntimeError,
    OSError,
    SafetensorError,
    SingleFileComponentError,
)
"""What the libraries raise where weights and configuration do not fit: they have no one word."""
LONGEST_REASON = 160
"""Characters: some name every tensor of the model."""


@contextmanager
def fitting(source: Path, folder: Path, component: Component) -> Iterator[None]:
    """Turns what is raised while `component` of `source` loads with `folder`'s configuration."""
    try:
        yield
    except MISFITS as error:
        if memory_refused(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # torch's first line only says that there were errors.
        reason = (lines[1:2] or lines or [type(error).__name__])[0]
        reason = " ".join(reason.split(". ")[0].split()).removesuffix(".")
        if len(reason) > LONGEST_REASON:
            reason = reason[:LONGEST_REASON].rsplit(" ", 1)[0] + " …"
        raise misfit(source, folder, component, reason) from error


def misfit(source: Path, folder: Path, component: Component, reason: str) -> RequestError:
    """The error for weights and a configuration that are not of one model."""
    place = folder / component.folder / "config.json"
    remedy = (
        "Copy the folder again."
        if source == folder
        else "Set [base].config to the diffusers folder that belongs to this checkpoint."
    )
    return RequestError(
        f"The {component.title} in {source} does not fit its configuration {place}: "
        f"{reason}. {remedy}"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Holds back the libraries' bars and warnings: what matters in them is checked here."""
    levels = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(levels[0])
        transformers_logging.set_verbosity(levels[1])
        if bars:
            transformers_logging.enable_progress_bar()
