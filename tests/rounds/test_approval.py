"""A build that asks after each round: by hand, with the answers as files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artefacts.decisions import Answer, decide, read_decisions
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.ledger import read_ledger
from pipeline.errors import NeedsDecision, RecipeError
from pipeline.progress import Silent
from pipeline.rounds.stage import parts

WriteRecipe = Callable[..., Path]
ASKING = '[rounds]\napprove = "each round"\ngate = "always"\nrefit = false\nstrength = 0.5\n'


@pytest.fixture
def asking(workshop: Path, tmp_path: Path) -> Callable[..., Job]:
    """Makes the job of a build that asks; takes (old, new) changes to its recipe's text."""
    shutil.copytree(workshop / "workspace", tmp_path / "workspace")

    def make(*changes: tuple[str, str]) -> Job:
        text = (workshop / "build.toml").read_text().replace("[rounds]\n", ASKING)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        recipe = workshop / "asking.toml"
        recipe.write_text(text)
        return load_job(recipe, tmp_path / "workspace")

    return make


def answer(job: Job, number: int, what: Answer, **more: float) -> None:
    decide(job.folder.round(number).decisions, what, who="test", **more)  # type: ignore[arg-type]


def test_a_recipe_that_asks_nobody_has_no_hours_to_wait(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match='approve = "no" asks nobody'):
        load_job(write_recipe("[rounds]\napprove_hours = 3\n"), tmp_path)


def run(job: Job) -> list[str]:
    """Every part in order; the names of those that had something to do."""
    fresh = []
    for part in parts(job):
        if not part.run(job, Silent()).already:
            fresh.append(part.name)
    return fresh


def test_a_build_waits_is_redone_goes_on_and_is_stopped(asking: Callable[..., Job]) -> None:
    job = asking(("[8]", "[2]"))
    folder = job.folder
    with pytest.raises(NeedsDecision, match="Round 1 of coats waits") as asked:
        run(job)
    assert (asked.value.round, asked.value.exit_code) == (1, 5)
    first = read_ledger(folder.ledger).rounds[0]
    with pytest.raises(NeedsDecision):
        run(job)  # Nobody has answered: it asks the same question, and does nothing else.
    questions = read_decisions(folder.round(1).decisions).asked
    assert [question.lora for question in questions] == [first.sha256]

    answer(job, 1, "redo", lr_scale=0.5)
    with pytest.raises(NeedsDecision):
        run(job)
    again = read_ledger(folder.ledger).rounds[0]
    assert again.learning_rate == pytest.approx(first.learning_rate / 2)
    assert again.sha256 != first.sha256

    answer(job, 1, "continue", strength=0.25, lr_scale=3.0)
    with pytest.raises(NeedsDecision, match="Round 2"):
        run(job)
    one, two = read_ledger(folder.ledger).rounds
    assert (one.strength, one.sha256) == (0.25, again.sha256), "the same LoRA, merged weaker"
    assert two.learning_rate == pytest.approx(3 * job.recipe.law()[1].learning_rate)

    answer(job, 2, "stop")
    run(job)
    ledger = read_ledger(folder.ledger)
    assert [row.round for row in ledger.rounds] == [1, 2]
    assert folder.final.is_file()
    assert run(job) == [], "all of it is done, and stays so"

    # Another recipe trains the round anew: nobody has said anything about that LoRA.
    other = asking(("rank = 4", "rank = 2"), ("[8]", "[1]"))
    with pytest.raises(NeedsDecision, match="Round 1"):
        run(other)
    (row,) = read_ledger(folder.ledger).rounds
    assert (row.strength, row.rank, row.attempts) == (0.5, 2, 1)
    assert row.learning_rate == job.recipe.law()[0].learning_rate, "the redo was of the old one"
    answer(other, 1, "continue")
    with pytest.raises(NeedsDecision, match="Round 2"):
        run(other)
    assert read_ledger(folder.ledger).rounds[1].learning_rate == job.recipe.law()[1].learning_rate


def test_the_attempt_that_was_shown_is_the_one_that_is_merged(asking: Callable[..., Job]) -> None:
    """At strength 0 both attempts are rejected; what a person then says is about the second."""
    job = asking(
        ('gate = "always"', 'gate = "improve"'),
        ("strength = 0.5", "strength = 0.0"),
        ("[8]", "[2]"),
    )
    with pytest.raises(NeedsDecision, match="Round 1"):
        run(job)
    (shown,) = read_ledger(job.folder.ledger).rounds
    assert (shown.decision, shown.attempts) == ("rejected", 2)
    answer(job, 1, "continue", strength=0.75)
    with pytest.raises(NeedsDecision, match="Round 2"):
        run(job)
    merged = read_ledger(job.folder.ledger).rounds[0]
    assert (merged.decision, merged.strength) == ("always", 0.75)
    assert merged.sha256 == shown.sha256
