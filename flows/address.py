"""Where the Prefect server of a workspace is: PREFECT_API_URL, or that of its `urushi up`.

`urushi up` holds WORKSPACE/prefect/.up.lock and writes its API's address into up.json beside it.
"""

import os
from pathlib import Path

from flows.settings import home_of
from pipeline.artefacts.files import read_json, translated
from pipeline.artefacts.locks import is_locked
from pipeline.errors import RequestError

UP_LOCK = ".up.lock"
UP_FILE = "up.json"


def known(workspace: Path) -> str | None:
    """The API's address of the server that this workspace's `urushi up` runs; None without one."""
    home = home_of(workspace)
    path = home / UP_FILE
    if not is_locked(home, UP_LOCK) or not path.exists():
        return None
    return str(read_json(path)["api"])


def connect(workspace: Path) -> str:
    """Puts the server's address into the environment, for prefect's import to find; returns it.

    Raises:
        RequestError: there is no server, or no folder can be made for Prefect.
    """
    api = os.environ.get("PREFECT_API_URL") or known(workspace)
    if api is None:
        raise RequestError(
            f"No Prefect server runs for {workspace}. Start one with `urushi up --workspace "
            f"{workspace}`, or set PREFECT_API_URL to yours."
        )
    os.environ["PREFECT_API_URL"] = api
    # Prefect makes it without its parents, and warns where those are missing.
    home = home_of(workspace)
    with translated(home):
        home.mkdir(parents=True, exist_ok=True)
    return api
