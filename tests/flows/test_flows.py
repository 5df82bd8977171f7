"""The other flows on a real server with a small build: refresh, compare, serve, other pools."""

import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.artefacts.files import read_json

if TYPE_CHECKING:
    from conftest import SmallBuild, Standing

URUSHI = Path(sys.executable).with_name("urushi")
pytestmark = [pytest.mark.prefect, pytest.mark.drill]


def started(standing: "Standing", deployment: str, **parameters: Any) -> str:
    """The id of a run of the deployment FLOW/NAME, begun now."""
    identity = standing.ask(f"/deployments/name/{deployment}")["id"]
    asked = f"/deployments/{identity}/create_flow_run"
    run: str = standing.ask(asked, parameters=parameters, state={"type": "SCHEDULED"})["id"]
    return run


def test_enough_newer_pictures_become_a_generation_and_a_page_compares_them(
    standing: "Standing", small_build: "SmallBuild"
) -> None:
    def written(pictures: int) -> Path:
        recipe = small_build(count=pictures)
        recipe.write_text(recipe.read_text().replace("count = 2", "count = 1"))
        return recipe

    builds = standing.workspace / "builds"
    run = standing.deploy(written(16), "--flow", "refresh")
    asked = standing.ask("/deployments/name/refresh/coat")["parameters"]
    assert (asked["least_new"], asked["rounds"]) == (500, 1), "spelled out for the interface"
    assert standing.wait(run, {"COMPLETED", "FAILED"})["state"]["name"] == "Completed"
    assert (builds / "coat" / "final.safetensors").is_file()

    run = started(standing, "refresh/coat", least_new=3)
    ended = standing.wait(run, {"COMPLETED", "FAILED"})["state"]
    assert (ended["name"], ended["message"]) == (
        "Nothing to do",
        "0 new pictures, 3 are wanted",
    ), standing.log[-4000:]
    written(19)
    run = started(standing, "refresh/coat", least_new=3)
    ended = standing.wait(run, {"COMPLETED", "FAILED"})["state"]
    assert ended["name"] == "Completed", standing.log[-4000:]
    assert read_json(builds / "coat-2" / "build.json")["status"] == "finished"
    assert read_json(builds / "coat-2" / "born.json") == {"pictures": 19}
    assert (standing.workspace / "recipes" / "coat" / "coat-2.toml").is_file()
    # The first build was not touched for it.
    assert read_json(builds / "coat" / "born.json") == {"pictures": 16}

    run = started(standing, f"compare/{standing.workspace.name}", builds=["coat", "coat-2"])
    assert standing.wait(run, {"COMPLETED", "FAILED"})["state_type"] == "COMPLETED"
    pages = standing.ask("/artifacts/latest/filter", limit=200)
    (page,) = [page["data"] for page in pages if page["key"] == "compare"]
    for name in ("coat", "coat-2"):
        assert f"| {name} | 1 of 1 |" in page
        assert f"## {name}" in page
    assert page.count("data:image/jpeg;base64,") == 2
    assert "All is well." in standing.urushi("doctor").stdout


def test_another_pools_deployment_is_no_business_of_this_machines(
    standing: "Standing", small_build: "SmallBuild"
) -> None:
    recipe = small_build().with_name("drawings.toml")
    words = [URUSHI, "deploy", recipe, "--pool", "cloud", "--workspace", standing.workspace]
    refused = subprocess.run(words, capture_output=True, text=True, env=standing.environment)
    assert refused.returncode == 2
    assert "There is no work pool cloud." in refused.stderr
    standing.ask("/work_pools/", name="cloud", type="process", base_job_template={})
    standing.urushi("deploy", recipe, "--pool", "cloud")
    for name in ("data/drawings", f"compare/{standing.workspace.name}"):
        made = standing.ask(f"/deployments/name/{name}")
        where = made["work_pool_name"], made["work_queue_name"]
        assert (*where, made["tags"], made["job_variables"]) == (
            "cloud",
            "default",
            ["urushi"],
            {},
        )


def test_served_it_needs_one_command_and_leaves_nothing_behind(
    own_standing: "Standing", small_build: "SmallBuild"
) -> None:
    standing = own_standing
    recipe = small_build().with_name("drawings.toml")
    words = [URUSHI, "serve", recipe, "--workspace", standing.workspace]
    with socket.create_server(("127.0.0.1", 0)) as free:
        words += ["--port", str(free.getsockname()[1])]
    with subprocess.Popen(
        words, env=standing.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as serving:
        assert serving.stdout is not None
        said = ""
        while "data/drawings is served" not in said:
            line = serving.stdout.readline()
            assert line, said
            said += line
        standing.api = standing.address(serving.pid)
        run = started(standing, "data/drawings")
        assert standing.wait(run, {"COMPLETED", "FAILED"})["state_type"] == "COMPLETED"
        serving.send_signal(signal.SIGINT)
        said = serving.stdout.read()
        assert serving.wait(200) == 0, said
    images = standing.workspace / "datasets" / "drawings" / "images" / "receipt.json"
    assert images.is_file()
    assert standing.processes() == []
