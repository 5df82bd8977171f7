"""Messages through Prefect's notification blocks: Slack, mail, ntfy, a webhook of one's own.

Blocks are made in Prefect's interface or by its command line, where their secrets stay; a
deployment names them as TYPE/NAME, such as slack-webhook/studio.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import httpx
from prefect.blocks.core import Block
from prefect.exceptions import PrefectException
from prefect.logging import get_logger


def notify(blocks: Sequence[str], subject: str, body: str) -> None:
    """Tells every block; one that cannot be told is a warning, never the end of a run."""
    # Block.load knows the types that are imported.
    if blocks:
        importlib.import_module("prefect.blocks.notifications")
    load: Any = Block.load
    for name in blocks:
        try:
            # Synchronous on request, which the types of Prefect do not tell.
            block = load(name, _sync=True)
            block.notify(body, subject=subject, _sync=True)
        except (PrefectException, httpx.HTTPError, ValueError, RuntimeError, OSError) as error:
            # Without its words: they may hold the address, and that the secret.
            get_logger("urushi").warning("%s was not told: %s", name, type(error).__name__)
