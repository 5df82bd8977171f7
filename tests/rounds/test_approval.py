"""A build that asks after each round: by hand, with the answers as files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artefacts.decisions import Answer, ask, decide, read_decisions
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.ledger import read_ledger
from pipeline.errors import NeedsDecision, RecipeError
from pipeline.progress import Silent
from pipeline.rounds.approval import decided
from pipeline.rounds.stage import parts

WriteRecipe = Callable[..., Path]
ASKING = '[rounds]\ncount = 3\nlearning_rate = 1e-4\ndecay = 0.5\napprove = "each round"\n'


def answer(job: Job, number: int, what: Answer, **more: float) -> None:
    path = job.folder.round(number).decisions
    ask(path)
    decide(path, what, who="test", **more)  # type: ignore[arg-type]


def rates(job: Job) -> list[float | None]:
    return [law.learning_rate for law in decided(job, job.recipe.law())]


def test_answers_change_the_law_of_what_follows(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    job = load_job(write_recipe(ASKING), tmp_path / "workspace")
    law = job.recipe.law()
    assert decided(job, law) == law
    answer(job, 1, "redo", lr_scale=0.5)
    assert rates(job) == pytest.approx([5e-5, 5e-5, 2.5e-5]), "a redo is about its own round"
    assert decided(job, law)[0].redone == 1
    answer(job, 1, "continue", lr_scale=2.0, strength=0.25)
    assert rates(job) == pytest.approx([5e-5, 1e-4, 5e-5]), "continue is about the later ones"
    assert decided(job, law)[0].strength == 0.25
    assert decided(job, law)[1].strength == law[1].strength


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


def test_a_build_waits_is_redone_goes_on_and_is_stopped(workshop: Path, tmp_path: Path) -> None:
    recipe = workshop / "asking.toml"
    text = (workshop / "build.toml").read_text()
    asking = '[rounds]\napprove = "each round"\ngate = "always"\nrefit = false\nstrength = 0.5\n'
    recipe.write_text(text.replace("[rounds]\n", asking))
    shutil.copytree(workshop / "workspace", tmp_path / "workspace")
    job = load_job(recipe, tmp_path / "workspace")
    folder = job.folder
    with pytest.raises(NeedsDecision, match="Round 1 of coats waits") as asked:
        run(job)
    assert (asked.value.round, asked.value.exit_code) == (1, 5)
    first = read_ledger(folder.ledger).rounds[0]
    with pytest.raises(NeedsDecision):
        run(job)  # Nobody has answered: it asks the same question, and does nothing else.
    assert len(read_decisions(folder.round(1).decisions).asked) == 1

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
