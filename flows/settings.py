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
    # Block types are for storage and notifications, which a run by hand does not use.
    "PREFECT_SERVER_API_BLOCKS_REGISTER_ON_START": "false",
    # For flows started without our server: Prefect's own 20 seconds are too few for the first
    # start on a slow machine.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # SQLite has one writer: on a busy machine the others wait, instead of failing after seconds.
    "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
    "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "60",
    # What is kept: events a week, runs with their logs and artifacts a quarter after their end.
    # Prefect's own default clears events alone, and lets runs and logs grow for ever.
    "PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "P7D",  # ISO 8601: seconds are refused here.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(90 * 86_400),
}

STANDING = {
    # The log of `urushi up` and the UI are where a run on a worker can be followed at all.
    "PREFECT_LOGGING_LEVEL": "INFO",
    # The UI offers notification blocks only once the server knows their types.
    "PREFECT_SERVER_API_BLOCKS_REGISTER_ON_START": "true",
}
"""What differs where a server stands for days and workers run the flows."""


def home_of(workspace: Path, environment: MutableMapping[str, str] = os.environ) -> Path:
    """Prefect's folder: PREFECT_HOME, else WORKSPACE/prefect."""
    return Path(environment.get("PREFECT_HOME") or workspace.resolve() / "prefect")


def prepare(
    workspace: Path,
    environment: MutableMapping[str, str] = os.environ,
    *,
    standing: bool = False,
) -> Path:
    """Sets the defaults; returns Prefect's folder (PREFECT_HOME), WORKSPACE/prefect unless set.

    Args:
        standing: for a server that stays, and for its workers.
    """
    home = home_of(workspace, environment)
    environment["PREFECT_HOME"] = str(home)
    for key, value in (DEFAULTS | (STANDING if standing else {})).items():
        environment.setdefault(key, value)
    return home
