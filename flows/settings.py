"""Prefect's settings for runs on one machine, put into the environment before prefect is imported.

Whatever the user set stays: every value is a default. Nothing leaves the machine (telemetry has
two switches), nothing is written outside the workspace, and Prefect itself stays silent: errors
are told once, by the front door.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

DEFAULTS = {
    # Telemetry: the server's heartbeat and the client's events are switched off apart.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # Prefect logs a traceback for every failed task, wrong recipes included.
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_COLORS": "false",
    # Receipts decide what is done; Prefect keeps no results.
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    # Block types are for storage and notifications, which no flow here uses.
    "PREFECT_SERVER_API_BLOCKS_REGISTER_ON_START": "false",
    # For flows started without our server: Prefect's own 20 seconds are too few for the first
    # start on a slow machine.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
}


def prepare(workspace: Path, environment: MutableMapping[str, str] = os.environ) -> Path:
    """Sets the defaults; returns Prefect's folder (PREFECT_HOME), WORKSPACE/prefect unless set."""
    home = Path(environment.setdefault("PREFECT_HOME", str(workspace / "prefect")))
    for key, value in DEFAULTS.items():
        environment.setdefault(key, value)
    return home
