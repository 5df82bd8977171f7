import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artefacts.locks import held, locked
from pipeline.artefacts.receipts import write_receipt
from pipeline.artefacts.runs import RUN_LOCK, write_run
from pipeline.artefacts.workspace import Workspace
from urushi.status import print_status, status

Urushi = Callable[..., subprocess.CompletedProcess[str]]


def state(workspace: Path) -> tuple[str, str | None, str | None]:
    (build,) = status(workspace)["builds"]
    return build["state"], build["part"], build["error"]


def test_an_empty_workspace_says_where_to_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_status(tmp_path / "none", as_json=False)
    assert "urushi new" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_states_of_a_run(tmp_path: Path) -> None:
    root = Workspace(tmp_path).build("coat").root
    root.mkdir(parents=True)
    assert state(tmp_path) == ("idle", None, None)
    write_run(root, "running", fingerprint="f", part="round-01-train")
    assert state(tmp_path) == ("interrupted", "round-01-train", None)
    with held(root / RUN_LOCK):
        assert state(tmp_path) == ("running", "round-01-train", None)
    write_run(root, "failed", fingerprint="f", part="cache", error="No room left on the disk.")
    assert state(tmp_path) == ("failed", "cache", "No room left on the disk.")
    with locked(root):
        # A stage by hand after the failure.
        assert state(tmp_path) == ("running", "cache", None)
    write_run(root, "stopped by the gate", fingerprint="f", part="round-04-strength", error="two")
    assert state(tmp_path) == ("stopped by the gate", "round-04-strength", "two")
    write_run(root, "finished", fingerprint="f")
    assert state(tmp_path) == ("finished", None, None)


def test_json_has_the_documented_shape(
    tmp_path: Path, urushi: Urushi, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(tmp_path / "workspace")
    dataset, build = workspace.dataset("set"), workspace.build("coat")
    dataset.images.mkdir(parents=True)
    write_receipt(
        dataset.images, "download", "f1", inputs={}, outputs=[], summary={"images": 7}, seconds=2
    )
    captions = dataset.captions("f2")
    captions.mkdir(parents=True)
    write_receipt(captions, "caption", "f2", inputs={}, outputs=[])
    build.root.mkdir(parents=True)
    build.final.write_text("x")
    ended = urushi("status", "--json")
    facts = json.loads(ended.stdout)
    assert set(facts) == {"workspace", "datasets", "builds"}
    assert facts["workspace"] == str(workspace.root)
    ((one,), (other,)) = facts["datasets"], facts["builds"]
    assert set(one) == {"name", "state", "part", "error", "at", "stages"}
    assert {s["stage"]: s["summary"] for s in one["stages"]} == {
        "download": {"images": 7},
        "caption": {},
    }
    assert set(one["stages"][0]) == {"stage", "fingerprint", "finished_at", "seconds", "summary"}
    assert set(other) == {
        *("name", "state", "part", "error", "at", "seconds", "rounds"),
        *("final", "final_lora", "report"),
    }
    assert (other["final"], other["report"]) == (str(build.final), None)
    shown = urushi("status").stdout
    assert "dataset set: idle" in shown and "images 7" in shown and "build coat" in shown


def test_a_damaged_ledger_is_told_not_raised(tmp_path: Path) -> None:
    build = Workspace(tmp_path).build("coat")
    build.root.mkdir(parents=True)
    build.ledger.write_text("{")
    assert state(tmp_path)[0] == "failed"
    assert "build.json is damaged" in str(state(tmp_path)[2])
