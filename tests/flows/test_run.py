"""Real Prefect runs, in processes of their own: settings are read when prefect is imported."""

import base64
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from PIL import Image

from demo.booru import running
from demo.booru_faults import Fault, no_faults
from demo.corpus import generate
from pipeline.artefacts.runs import RunRecord, read_run

WriteRecipe = Callable[..., Path]

PROGRAM = """
import os, signal, sys, time
from dataclasses import dataclass
from collections.abc import Callable
from pathlib import Path
from flows import run, work
from pipeline import errors
from pipeline.artefacts.job import Outcome, load_job
from pipeline.progress import Silent

@dataclass(frozen=True)
class Part:
    name: str
    run: Callable

def second(job, progress):
    exec(sys.argv[3])
    return Outcome("two", False, "made two")

job = load_job(Path(sys.argv[1]), Path(sys.argv[2]))
work.data_parts = lambda job: ()
parts = [Part("one", lambda job, progress: Outcome("one", True, "made one")), Part("two", second)]
try:
    for done in run.run_recipe(job, Silent(), parts):
        print(done.name, done.outcome.already)
except errors.UrushiError as error:
    print(type(error).__name__, error.exit_code, error)
except KeyboardInterrupt:
    print("KeyboardInterrupt")
print("PREFECT_API_URL" in os.environ)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One folder of Prefect's for all runs here: making its database takes longer than a run."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return ours | {"PREFECT_HOME": str(tmp_path_factory.mktemp("prefect"))}


@pytest.fixture
def run(
    write_recipe: WriteRecipe, tmp_path: Path, environment: dict[str, str]
) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a build of two parts, of which the second does what the code says."""
    recipe = write_recipe()

    def started(code: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", PROGRAM, recipe, tmp_path / "workspace", code]
        return subprocess.run(
            words, capture_output=True, text=True, timeout=180, env=environment, cwd=tmp_path
        )

    return started


def record(workspace: Path) -> RunRecord:
    found = read_run(workspace / "builds" / "coat")
    assert found is not None
    return found


def states(environment: dict[str, str], *names: str) -> list[str]:
    """The state of the newest flow or task run of each name, as Prefect's own database has it."""
    path = Path(environment["PREFECT_HOME"]) / "prefect.db"
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute(
            "select name, state_name, start_time from flow_run "
            "union all select name, state_name, start_time from task_run order by 3"
        ).fetchall()
    newest = {name: state for name, state, _ in rows}
    return [newest[name] for name in names]


def servers() -> list[psutil.Process]:
    """Embedded servers that run now."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "flows.server" in (process.info["cmdline"] or []):
            found.append(process)
    return found


@pytest.mark.prefect
def test_parts_become_tasks_and_errors_cross_unchanged(
    run: Callable[[str], subprocess.CompletedProcess[str]],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    workspace = tmp_path / "workspace"
    ended = run("pass")
    assert ended.stdout.split("\n")[:4] == ["prefect False", "one True", "two False", "False"]
    assert ended.stderr == ""
    names = ("build coat", "one", "two")
    done, already = "Completed", "Already done"
    assert states(environment, *names) == [done, already, done]
    assert record(workspace).state == "finished"

    ended = run("raise errors.GateStopped('two rejected in a row')")
    assert ended.stdout.startswith("GateStopped 4 two rejected in a row\n")
    # One message, told by the front door: Prefect must not print a traceback of it.
    assert ended.stderr == ""
    found = record(workspace)
    assert (found.state, found.part) == ("stopped by the gate", "two")
    assert found.error == "two rejected in a row"
    assert states(environment, *names) == ["Failed", already, "Failed"]

    ended = run("os.kill(os.getpid(), signal.SIGINT); time.sleep(20)")
    assert ended.stdout.startswith("KeyboardInterrupt\n")
    found = record(workspace)
    assert (found.state, found.part, found.error) == ("interrupted", "two", None)


@pytest.mark.prefect
def test_a_killed_run_leaves_no_server_behind(
    run: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    before = {process.pid for process in servers()}
    ended = run("os.kill(os.getpid(), signal.SIGKILL)")
    assert ended.returncode == -signal.SIGKILL
    end = time.monotonic() + 30
    while left := [process for process in servers() if process.pid not in before]:
        assert time.monotonic() < end, left
        time.sleep(0.1)
    assert record(tmp_path / "workspace").state == "running", "nobody was there to write more"


@pytest.mark.prefect
def test_a_dataset_recipe_runs_and_a_second_run_starts_nothing(
    write_recipe: WriteRecipe, environment: dict[str, str], tmp_path: Path
) -> None:
    """The front door's `run`: download and caption of a folder, then nothing to do."""
    recipe = write_recipe().with_name("pictures.toml")
    for number in range(4):
        picture = Image.new("RGB", (80, 64), (60 * number, 30, 200))
        picture.save(tmp_path / "pictures" / f"{number}.png")
    urushi = Path(sys.executable).with_name("urushi")
    words = [urushi, "run", recipe, "--workspace", tmp_path / "workspace"]
    first = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=180)
    assert first.returncode == 0, first.stderr
    told = first.stderr.splitlines()
    assert [line.partition(":")[0] for line in told if line.startswith(("down", "cap"))] == [
        "download",
        "caption",
    ]
    names = ("data pictures", "download", "caption")
    assert states(environment, *names) == ["Completed"] * 3
    second = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60)
    assert second.returncode == 0
    assert second.stderr == "pictures is finished. Nothing to do.\n"
    shown = subprocess.run(
        [urushi, "status", "--json", "--workspace", tmp_path / "workspace"],
        capture_output=True,
        text=True,
    )
    (dataset,) = json.loads(shown.stdout)["datasets"]
    assert dataset["state"] == "finished"
    assert [stage["stage"] for stage in dataset["stages"]] == ["download", "caption"]


def test_the_same_recipe_runs_once_at_a_time(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run is refused before anything of Prefect starts."""
    monkeypatch.delitem(sys.modules, "prefect", raising=False)  # Another test's.
    from flows.run import run_recipe
    from pipeline.artefacts.job import load_job
    from pipeline.artefacts.locks import held
    from pipeline.artefacts.runs import RUN_LOCK, run_root
    from pipeline.errors import BusyError
    from pipeline.progress import Silent

    job = load_job(write_recipe(), tmp_path / "workspace")
    with held(run_root(job) / RUN_LOCK), pytest.raises(BusyError, match=str(os.getpid())):
        run_recipe(job, Silent())
    assert "prefect" not in sys.modules
    assert not (tmp_path / "workspace" / "prefect").exists()


@pytest.mark.prefect
@pytest.mark.drill
def test_a_sites_key_is_in_nothing_that_a_run_leaves(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Neither in the workspace nor in Prefect's folder, be it a run that fails over the key."""
    secret = "s3cr3t+k3y"
    spelled = secret.encode(), b"s3cr3t%2B", base64.b64encode(f"me:{secret}".encode())[4:-4]
    keys = {"URUSHI_DANBOORU_LOGIN": "me", "URUSHI_DANBOORU_API_KEY": secret}
    recipe, home = tmp_path / "small.toml", Path(environment["PREFECT_HOME"])
    more = environment | keys | {"XDG_RUNTIME_DIR": str(tmp_path)}
    words = [Path(sys.executable).with_name("urushi"), "run", recipe]
    words += ["--workspace", tmp_path / "workspace"]
    refused = Fault(status=401, body=json.dumps({"message": f"bad key {secret}"}).encode())
    with running(corpus=generate(seed=5, count=12)) as booru:
        booru.account = ("me", secret)
        recipe.write_text(
            f'name = "small"\n[download]\nsite = "danbooru"\nhost = "{booru.url}"\n'
            'tags = "maki-e_box"\nrequests_per_second = 1000.0\n'
        )
        for faults, code in ((lambda hit: refused, 1), (no_faults, 0)):
            booru.faults = faults
            ended = subprocess.run(words, capture_output=True, env=more, cwd=tmp_path, timeout=180)
            assert ended.returncode == code, ended.stderr
            assert not any(form in ended.stdout + ended.stderr for form in spelled)
        assert any(spelled[2] in str(hit.headers).encode() for hit in booru.hits)
    left = [p for root in (home, tmp_path / "workspace") for p in root.rglob("*") if p.is_file()]
    assert any(b"keeps us out" in path.read_bytes() for path in left if path.parent == home)
    assert not [path for path in left if any(form in path.read_bytes() for form in spelled)]
