from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.artefacts.decisions import Decisions, ask, decide, overdue, read_decisions
from pipeline.errors import RequestError, UrushiError

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
LORA = "5ead"


def test_a_question_is_asked_once_and_answered_once(tmp_path: Path) -> None:
    path = tmp_path / "decisions.json"
    assert not read_decisions(path).waiting
    with pytest.raises(RequestError, match="No question waits"):
        decide(path, "continue", who="me")
    asked = ask(path, LORA, "t", NOON)
    assert ask(path, LORA, "t", NOON + timedelta(hours=1)) == asked, "asking again changes nothing"
    assert read_decisions(path).about(LORA) is None
    decide(path, "continue", who="me", strength=0.5, lr_scale=2.0)
    assert read_decisions(path).strengths == {LORA: 0.5}
    found = read_decisions(path).about(LORA)
    assert found is not None
    assert (found.decision, found.strength, found.lr_scale, found.who) == ("continue", 0.5, 2, "me")
    with pytest.raises(RequestError, match="No question waits"):
        decide(path, "stop", who="me")


def test_a_round_done_again_is_asked_about_again_and_its_scales_multiply(tmp_path: Path) -> None:
    path = tmp_path / "decisions.json"
    for number, scale in enumerate((0.5, 0.25)):
        ask(path, f"lora {number}", "t")
        decide(path, "redo", who="me", lr_scale=scale)
        assert read_decisions(path).about(f"lora {number}") is None, "it is being done again"
    ask(path, LORA, "t")
    decide(path, "continue", who="me", lr_scale=3.0)
    found = read_decisions(path)
    assert [redo.lr_scale for redo in found.redos("t")] == [0.5, 0.25]
    assert found.about(LORA) is not None


def test_an_answer_holds_for_its_lora_and_a_redo_for_its_training(tmp_path: Path) -> None:
    path = tmp_path / "decisions.json"
    ask(path, "one", "t")
    decide(path, "redo", who="me", lr_scale=0.5)
    ask(path, LORA, "t")
    decide(path, "continue", who="me", strength=0.25)
    found = ask(path, "another", "u")
    assert found.waiting and found.about("another") is None
    assert found.redos("u") == () and found.strengths == {LORA: 0.25}
    later = ask(path, "a third", "v")
    assert [question.lora for question in later.asked] == ["one", LORA, "a third"], (
        "nobody is asked any longer about a LoRA that was trained anew"
    )


def test_the_default_comes_after_its_hours(tmp_path: Path) -> None:
    found = ask(tmp_path / "decisions.json", LORA, "t", NOON)
    assert not overdue(found, 12, NOON + timedelta(hours=11))
    assert overdue(found, 12, NOON + timedelta(hours=12))
    assert not overdue(found, None, NOON + timedelta(days=400)), "no default: it waits for ever"


def test_questions_of_the_first_form_are_none(tmp_path: Path) -> None:
    """They say when they were asked, and not about what: the round is asked about again."""
    path = tmp_path / "decisions.json"
    answer = '{"decision": "continue", "who": "me", "at": "2026-05-01T12:00:00Z"}'
    path.write_text(f'{{"asked": ["2026-05-01T12:00:00Z"], "decided": [{answer}]}}')
    assert read_decisions(path) == Decisions()
    assert ask(path, LORA, "t", NOON).waiting


def test_wrong_numbers_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "decisions.json"
    ask(path, LORA, "t")
    with pytest.raises(RequestError, match="lr_scale"):
        decide(path, "redo", who="me", lr_scale=0.0)
    with pytest.raises(RequestError, match="strength"):
        decide(path, "continue", who="me", strength=7.0)
    assert read_decisions(path).waiting, "a wrong answer is none"
    path.write_text('{"asked": 3}')
    with pytest.raises(UrushiError, match=r"decisions\.json is damaged at asked"):
        read_decisions(path)
