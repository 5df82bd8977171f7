"""Which question a suspended run waits for; no server."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.approval import key_of, question
from pipeline.artefacts.decisions import ask, decide
from pipeline.artefacts.job import load_job

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
ASKING = '[rounds]\napprove = "each round"\n'


def test_a_question_in_the_place_of_another_has_a_key_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "decisions.json"
    asked = [ask(path, lora, "t", NOON) for lora in ("0" * 64, "1" * 64)]
    assert [len(found.asked) for found in asked] == [1, 1], "the first is withdrawn"
    keys = [key_of(2, found) for found in asked]
    assert keys == [f"round-02-1-{12 * digit}-1777636800" for digit in "01"]
    later = ask(tmp_path / "other.json", "0" * 64, "t", NOON + timedelta(hours=1))
    assert key_of(2, later) != keys[0]


@pytest.mark.parametrize("approve", [True, False])
def test_nobody_is_waited_for_once_the_recipe_asks_nobody(
    approve: bool, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    job = load_job(write_recipe(ASKING if approve else ""), tmp_path / "workspace")
    path = job.folder.round(1).decisions
    found = ask(path, "0" * 64, "t", NOON)
    assert question(job) == ((1, found) if approve else None)
    decide(path, "continue", who="test")
    assert question(job) is None
