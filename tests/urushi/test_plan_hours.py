import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from pipeline.artefacts.files import write_text
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.ledger import RoundRow
from pipeline.artefacts.workspace import BuildFolder
from urushi.plan_hours import time_lines

ROUND: dict[str, Any] = {
    "round": 1,
    "steps": 100,
    "attempts": 2,
    "seconds": 60.0,
    "phases": {"train": 50.0, "merge": 10.0},
}


@pytest.fixture
def job(write_recipe: Any, tmp_path: Path) -> Job:
    return load_job(write_recipe("[rounds]\ncount = 2\nsteps = [60]\n"), tmp_path / "workspace")


def run_before(folder: BuildFolder, job: Job, ledger: Any, **lora: int) -> None:
    """Leaves what a build of this recipe, but for `lora`, leaves behind."""
    table = job.recipe.model_dump(mode="json", exclude_none=True)
    table["lora"] |= lora
    write_text(folder.recipe, tomli_w.dumps(table))
    write_text(folder.ledger, json.dumps(ledger))


def test_this_builds_own_rounds_tell_the_time(job: Job, ledger_of: Any) -> None:
    assert "unknown until a round has run" in next(iter(time_lines(job, 120)))
    run_before(job.folder, job, ledger_of("coat", ROUND))
    rate, whole = time_lines(job, 120)
    # 50 s for 2 attempts of 100 steps each, and 10 s beside.
    assert rate.startswith("0.25 s a step, and 10.0 s a round beside training, as measured in 1 ")
    assert rate.endswith("of this build")
    assert whole == "50.0 s for all 2 rounds (120 steps), if none is tried twice"
    assert len(list(time_lines(job, None))) == 1


def test_another_build_lends_its_rate_only_if_it_trains_alike(job: Job, ledger_of: Any) -> None:
    other = job.workspace.build("elsewhere")
    run_before(other, job, ledger_of("elsewhere", ROUND), rank=32)
    assert "unknown until a round has run" in next(iter(time_lines(job, 120)))
    run_before(other, job, ledger_of("elsewhere", ROUND), alpha=3)
    assert next(iter(time_lines(job, 120))).endswith("of elsewhere, which trains alike")
    other.ledger.write_text("{")
    assert "unknown until a round has run" in next(iter(time_lines(job, 120)))


@pytest.fixture
def ledger_of() -> Any:
    """ledger_of(name, round) -> a ledger's JSON, with what does not matter here filled in."""

    def make(name: str, row: dict[str, Any]) -> dict[str, Any]:
        filled = {field: _anything(field) for field in RoundRow.model_fields} | row
        return {
            "build": name,
            "recipe": "",
            "seed": 0,
            "origin": "",
            "origin_blake3": "",
            "prediction_type": "epsilon",
            "status": "running",
            "stopped": None,
            "trials": [],
            "refit": None,
            "baseline": None,
            "heldout_pictures": 4,
            "heldout_origin": None,
            "rounds": [filled],
            "final": None,
            "final_sha256": None,
            "final_lora": None,
            "seconds": {},
        }

    return make


def _anything(field: str) -> Any:
    kinds: dict[Any, Any] = {int: 0, float: 0.0, str: ""}
    annotation = RoundRow.model_fields[field].annotation
    if field == "decision":
        return "accepted"
    if annotation in kinds:
        return kinds[annotation]
    if annotation == float | None:
        return None
    return {} if str(annotation).startswith("dict") else []
