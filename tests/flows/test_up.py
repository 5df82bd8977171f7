"""Deployments, workers and schedules on a real server: what a resolver's drift would break."""

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
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


TELL = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from flows.notify import notify
CustomWebhookNotificationBlock(
    name="studio", url=sys.argv[1], json_data={"subject": "{{subject}}", "body": "{{body}}"}
).save("studio", overwrite=True)
CustomWebhookNotificationBlock(name="shut", url=sys.argv[2]).save("shut", overwrite=True)
blocks = ["custom-webhook/none", "custom-webhook/shut", "custom-webhook/studio"]
notify(blocks, "coat: finished", "final.safetensors")
"""


def test_a_block_of_prefects_is_told(standing: "Standing") -> None:
    """A real block, saved on the server, that posts to a page of ours; one that is not there, or
    whose page refuses, is only warned of, without its address: that may be the secret."""
    told: list[dict[str, str]] = []

    class Page(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if "/T0KEN" in self.path:
                self.send_response(403)
            else:
                told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as page:
        thread = threading.Thread(target=page.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{page.server_port}/"
        ended = subprocess.run(
            [sys.executable, "-c", TELL, address, f"{address}services/T0KEN"],
            capture_output=True,
            text=True,
            env=standing.environment | {"PREFECT_API_URL": standing.api},
        )
        page.shutdown()
        thread.join()
    assert ended.returncode == 0, ended.stderr
    assert told == [{"subject": "coat: finished", "body": "final.safetensors"}]
    said = ended.stderr + ended.stdout
    assert "custom-webhook/none was not told: ValueError" in said
    assert "custom-webhook/shut was not told: HTTPStatusError" in said
    assert "T0KEN" not in said
