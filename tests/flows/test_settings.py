import os
import subprocess
import sys
from pathlib import Path

from flows.settings import DEFAULTS, prepare


def test_nothing_leaves_the_machine_or_the_workspace(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    assert prepare(tmp_path, environment) == tmp_path / "prefect"
    assert environment["PREFECT_HOME"] == str(tmp_path / "prefect")
    # Two switches: the server's heartbeat, the client's events.
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert environment["DO_NOT_TRACK"] == "1"
    assert int(environment["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"]) >= 120


def test_what_the_user_set_stays(tmp_path: Path) -> None:
    environment = {"PREFECT_HOME": "/srv/prefect", "PREFECT_LOGGING_LEVEL": "DEBUG"}
    assert prepare(tmp_path, environment) == Path("/srv/prefect")
    assert environment["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert set(DEFAULTS) <= set(environment)


READ = """
import json
from prefect.settings import get_current_settings
server = get_current_settings().server
vacuum = server.services.db_vacuum
print(sorted(vacuum.enabled_vacuum_types), vacuum.retention_period.days,
      server.events.retention_period.days, server.analytics_enabled)
"""


def test_prefect_reads_them_as_they_are_meant(tmp_path: Path) -> None:
    """Prefect wants some spans in seconds and others in ISO 8601, and does not start else."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    prepare(tmp_path, environment, standing=True)
    ended = subprocess.run(
        [sys.executable, "-c", READ], capture_output=True, text=True, env=environment
    )
    assert ended.stdout == "['events', 'flow_runs', 'orphans'] 90 7 False\n", ended.stderr
