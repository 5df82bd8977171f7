"""Long drills on a real server, worker and build: kills, cancellation, drain, limits, the UI."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import requests
from PIL import Image

from pipeline.artefacts.runs import read_run

if TYPE_CHECKING:
    from conftest import SmallBuild, Standing

pytestmark = [pytest.mark.prefect, pytest.mark.drill]

LONG = 400
"""Steps of a round that does not end before a test has done with it."""


def train_folder(standing: "Standing", build: str = "coat", number: int = 1) -> Path:
    return standing.workspace / "builds" / build / "rounds" / f"{number:02d}" / "train"


def resume_points(standing: "Standing", build: str = "coat") -> list[Path]:
    return sorted(train_folder(standing, build).glob("state-*.pt"))


def test_killed_everywhere_the_same_run_comes_to_its_end(
    own_standing: "Standing", small_build: "SmallBuild"
) -> None:
    """SIGKILL of `up`, server, worker, flow and what trains, inside a round; then `urushi up`."""
    standing = own_standing
    standing.start()
    run = standing.deploy(small_build(steps=30))
    standing.until(lambda: len(resume_points(standing)) > 0, 400)
    assert standing.run(run)["state_type"] == "RUNNING"
    assert standing.process is not None
    victims = [psutil.Process(standing.process.pid), *standing.processes()]
    assert len(victims) >= 5
    for victim in victims:
        victim.kill()
    standing.process.wait()
    psutil.wait_procs(victims, 30)
    assert standing.processes() == []
    standing.start()
    assert standing.run(run)["state_type"] in {"RUNNING", "SCHEDULED", "PENDING"}
    ended = standing.wait(run, {"COMPLETED", "FAILED"})
    assert (ended["state_type"], ended["run_count"]) == ("COMPLETED", 2), standing.log[-4000:]
    ledger = json.loads((standing.workspace / "builds" / "coat" / "build.json").read_text())
    assert ledger["status"] == "finished"
    # Nothing that was done before the kill was done again.
    tasks = standing.ask("/task_runs/filter", task_runs={"flow_run_id": {"any_": [run]}})
    names = {task["state"]["name"] for task in tasks if task["name"] == "cache"}
    assert names == {"Completed", "Already done"}
    assert standing.end() == 0
    assert standing.processes() == []


def test_cancelled_it_saves_and_leaves_nothing_behind(
    standing: "Standing", small_build: "SmallBuild"
) -> None:
    recipe = named(small_build(steps=LONG), "cancelled")
    # Nothing is saved by itself; curves tell that it trains.
    never = "save_every = 100000\nlog_every = 1"
    recipe.write_text(recipe.read_text().replace("save_every = 2", never))
    run = standing.deploy(recipe)
    round_folder = train_folder(standing, "cancelled").parent
    header = 200

    def trains() -> bool:
        return any(path.stat().st_size > header for path in round_folder.rglob("events.out.*"))

    standing.until(trains, 400)
    assert resume_points(standing, "cancelled") == []
    began = time.monotonic()
    ended = subprocess.run(
        [Path(sys.executable).with_name("prefect"), "flow-run", "cancel", run],
        env=standing.environment | {"PREFECT_API_URL": standing.api},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    standing.wait(run, {"CANCELLED"}, 60)
    lock = standing.workspace / "flow_runs" / f"{run}.lock"
    holder = int(lock.read_text().split()[0])
    standing.until(lambda: not psutil.pid_exists(holder), 30)
    assert time.monotonic() - began < 30
    assert len(resume_points(standing, "cancelled")) == 1
    last = read_run(standing.workspace / "builds" / "cancelled")
    assert last is not None
    assert last.state == "interrupted"
    # Asked for, so the doctor does not bring it back.
    assert "All is well." in standing.urushi("doctor").stdout
    assert standing.run(run)["state_type"] == "CANCELLED"


def test_drained_it_goes_on_with_the_next_up(
    own_standing: "Standing", small_build: "SmallBuild"
) -> None:
    standing = own_standing
    standing.start()
    run = standing.deploy(small_build(steps=60))
    standing.until(lambda: resume_points(standing), 400)
    told = standing.urushi("drain", "--wait", "120").stdout
    assert "build coat: saved; goes on with the next `urushi up`" in told
    assert not (standing.workspace / "builds" / "coat" / "STOP").exists()
    saved = resume_points(standing)[-1]
    # The pool is paused: it waits, however long the worker is there.
    assert standing.ask("/work_pools/urushi")["is_paused"]
    assert standing.run(run)["state"]["name"] == "AwaitingRetry"
    assert standing.end() == 0
    assert resume_points(standing)[-1] == saved
    standing.start()
    standing.until(lambda: not standing.ask("/work_pools/urushi")["is_paused"], 60)
    assert standing.wait(run, {"COMPLETED", "FAILED"})["state_type"] == "COMPLETED"


def test_a_server_that_dies_is_started_again_and_the_run_does_not_notice(
    standing: "Standing", small_build: "SmallBuild"
) -> None:
    run = standing.deploy(named(small_build(steps=60), "outlives"))
    standing.until(lambda: resume_points(standing, "outlives"), 400)
    (server,) = [one for one in standing.processes() if "flows.server" in one.cmdline()]
    server.kill()
    standing.until(lambda: "The server ended (-9); starting it again." in standing.log, 60)
    standing.until(lambda: answers(standing), 300)
    ended = standing.wait(run, {"COMPLETED", "FAILED", "CRASHED"})
    assert (ended["state_type"], ended["run_count"]) == ("COMPLETED", 1), standing.log[-4000:]
    assert "build outlives: its process is gone" not in standing.log


def answers(standing: "Standing") -> bool:
    try:
        return requests.get(f"{standing.api}/health", timeout=60).ok
    except requests.ConnectionError:
        return False


def test_one_build_at_a_time_and_data_beside_it(
    standing: "Standing", small_build: "SmallBuild"
) -> None:
    recipe = small_build(steps=LONG)
    first = standing.deploy(named(recipe, "first"))
    standing.until(lambda: resume_points(standing, "first"), 400)
    second = standing.deploy(named(recipe, "second"))
    data = standing.deploy(recipe.with_name("drawings.toml"))
    # A run that needs no GPU does not wait for one that has it.
    standing.wait(data, {"COMPLETED"}, 200)
    assert standing.run(first)["state_type"] == "RUNNING"
    assert standing.run(second)["state_type"] == "SCHEDULED"
    for run in (second, first):
        state = {"type": "CANCELLING"} if run == first else {"type": "CANCELLED"}
        standing.ask(f"/flow_runs/{run}/set_state", state=state)
        standing.wait(run, {"CANCELLED"}, 60)


def test_the_interface_shows_the_run_and_the_rounds_grid(
    standing: "Standing", small_build: "SmallBuild", tmp_path: Path
) -> None:
    driver = browser()
    if driver.BROWSER is None:
        pytest.skip("no chromium on this machine")
    run = standing.deploy(named(small_build(), "shown"))
    assert standing.wait(run, {"COMPLETED", "FAILED"})["state_type"] == "COMPLETED"
    artifacts = {
        artifact["key"]: artifact for artifact in standing.ask("/artifacts/latest/filter", limit=50)
    }
    assert {"shown-round-01", "shown-round-02", "shown-history"} <= set(artifacts)
    assert len(artifacts["shown-round-02"]["data"]) < 300_000
    root = standing.api.removesuffix("/api")
    with driver.chromium(tmp_path / "profile") as page:
        window = {"width": 1300, "height": 1700, "deviceScaleFactor": 1, "mobile": False}
        page.call("Emulation.setDeviceMetricsOverride", **window)

        def show(path: str, text: str, name: str, pictures: int = 0) -> Path:
            page.call("Page.navigate", url=root + path)
            seen = f"!!document.body && document.body.innerText.includes({json.dumps(text)})"
            drawn = "Array.from(document.images).filter(i => i.complete && i.naturalWidth).length"
            standing.until(lambda: page.run(f"{seen} && {drawn} >= {pictures}"), 120)
            shot: Path = page.shot(tmp_path / f"{name}.png")
            return shot

        show(f"/runs/flow-run/{run}", "build shown", "flow-run")
        artifact = artifacts["shown-round-02"]["latest_id"]
        shot = show(f"/artifacts/artifact/{artifact}", "round 2", "round", 1)
        sizes = page.run("Array.from(document.images, i => [i.naturalWidth, i.naturalHeight])")
        place = page.run(
            "(r => [r.left, r.top, r.right, r.bottom])"
            "(Array.from(document.images).at(-1).getBoundingClientRect())"
        )
    grid = standing.workspace / "builds" / "shown" / "rounds" / "02" / "grid.png"
    with Image.open(grid) as opened:
        shape = opened.width / opened.height
    width, height = sizes[-1]
    assert width / height == pytest.approx(shape, rel=0.05)
    with Image.open(shot) as opened:
        shown = opened.convert("RGB").crop([int(edge) for edge in place])
    # Drawings on paper and not an empty frame: many colours.
    assert len(shown.getcolors(1 << 24) or []) > 200


def named(recipe: Path, name: str) -> Path:
    """The build recipe under another name."""
    copy = recipe.with_name(f"{name}.toml")
    copy.write_text(recipe.read_text().replace('name = "coat"', f'name = "{name}"'))
    return copy


def browser() -> Any:
    """tests/preview/chromium.py, which no test can import by name."""
    place = Path(__file__).parents[1] / "preview" / "chromium.py"
    spec = importlib.util.spec_from_file_location("chromium_for_flows", place)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_build_that_asks_is_answered_by_shell_by_form_and_by_the_clock(
    standing: "Standing", small_build: "SmallBuild"
) -> None:
    """Three rounds, each answered another way; in between the process is gone."""
    recipe = small_build(rounds='approve = "each round"\nrefit = false')
    recipe = named(recipe, "asked")
    recipe.write_text(recipe.read_text().replace("count = 2", "count = 3"))
    run = standing.deploy(recipe)
    rounds = standing.workspace / "builds" / "asked" / "rounds"

    def waits(number: int) -> None:
        standing.until(lambda: standing.run(run)["state_type"] in {"PAUSED", "FAILED"}, 400)
        assert standing.run(run)["state"]["name"] == "Suspended", standing.log[-4000:]
        holder = int((standing.workspace / "flow_runs" / f"{run}.lock").read_text().split()[0])
        standing.until(lambda: not psutil.pid_exists(holder), 60)
        asked = json.loads((rounds / f"{number:02d}" / "decisions.json").read_text())
        assert len(asked["asked"]) > len(asked["decided"])

    waits(1)
    told = standing.urushi("approve", "asked", "continue", "--lr-scale", "0.5").stdout
    assert "asked, round 1: continue" in told
    assert "goes on" in told, "resumed by this command, or by the doctor who saw the answer first"
    standing.until(lambda: standing.run(run)["state_type"] != "PAUSED", 60)
    waits(2)
    # What the interface's form sends; an answer that is none is refused, and the run waits on.
    wrong = {"run_input": {"decision": "continue", "strength": None, "lr_scale": "abc"}}
    refused = requests.post(f"{standing.api}/flow_runs/{run}/resume", json=wrong, timeout=60)
    assert refused.json()["status"] != "ACCEPT"
    form = {"decision": "continue", "strength": 0.25, "lr_scale": 1.0}
    standing.ask(f"/flow_runs/{run}/resume", run_input=form)
    standing.until(lambda: standing.run(run)["state_type"] != "PAUSED", 60)
    waits(3)
    second = json.loads((rounds / "02" / "decisions.json").read_text())["decided"][0]
    assert (second["who"], second["strength"]) == ("Prefect's form", 0.25)
    # Nobody answers: the recipe gets a limit that is over already, and the doctor decides.
    hours = 'approve = "each round"\napprove_hours = 0.0001'
    recipe.write_text(recipe.read_text().replace('approve = "each round"', hours))
    ended = standing.wait(run, {"COMPLETED", "FAILED"})
    assert ended["state_type"] == "COMPLETED", standing.log[-4000:]
    third = json.loads((rounds / "03" / "decisions.json").read_text())["decided"][0]
    assert third["who"].startswith("nobody for")
    ledger = json.loads((standing.workspace / "builds" / "asked" / "build.json").read_text())
    assert [row["strength"] for row in ledger["rounds"]] == [0.5, 0.25, 0.5]
    rates = [row["learning_rate"] for row in ledger["rounds"]]
    assert rates == pytest.approx([2e-3, 5e-4, 2.5e-4])
