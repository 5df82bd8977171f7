"""Deployments, workers and schedules on a real server: what a resolver's drift would break."""

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import SmallBuild, Standing

pytestmark = pytest.mark.prefect


def test_a_cron_makes_a_run_and_the_worker_does_it(
    standing: "Standing", small_build: "SmallBuild"
) -> None:
    """With a newer sqlalchemy no schedule fires, with a newer fastapi no list of runs answers."""
    recipe = small_build().with_name("drawings.toml")
    told = standing.urushi("deploy", recipe, "--cron", "* * * * *", "--timezone", "Europe/Berlin")
    assert "data/drawings" in told.stdout

    def done() -> list[str]:
        return [
            run["name"]
            for run in standing.runs()
            if run["auto_scheduled"] and run["state_type"] == "COMPLETED"
        ]

    standing.until(done, 300.0)
    assert done()[0] == "data drawings"
    images = standing.workspace / "datasets" / "drawings" / "images" / "receipt.json"
    assert images.is_file()
    listed = subprocess.run(
        [Path(sys.executable).with_name("prefect"), "flow-run", "ls"],
        capture_output=True,
        text=True,
        env=standing.environment | {"PREFECT_API_URL": standing.api, "COLUMNS": "200"},
    )
    assert listed.returncode == 0, listed.stderr
    assert " data " in listed.stdout
    # The server's own services tell nobody but the log what went wrong. That SQLite was busy for a
    # moment is no matter: they try again.
    errors = re.findall(r"^[\w.]+(?:Error|Exception): .*", standing.log, re.MULTILINE)
    assert [line for line in errors if "database is locked" not in line] == []
    deployment = standing.ask("/deployments/name/data/drawings")
    (schedule,) = deployment["schedules"]
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"
    standing.ask("/deployments/" + deployment["id"] + "/pause_deployment", x=1)
