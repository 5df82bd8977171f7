"""What can be done with a finished build: other strengths, a fork, more rounds, a rebuilt final."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.ledger import read_ledger
from pipeline.errors import RequestError
from pipeline.progress import Silent
from pipeline.rounds import settle, stage
from pipeline.rounds.chain import sha256
from pipeline.rounds.history import history
from pipeline.rounds.refit import Refit
from pipeline.rounds.settle import refitted
from urushi.fork import fork
from urushi.rebuild import rebuild_round
from urushi.reweigh import reweigh
from urushi.run import add_rounds


def run(job: Job) -> None:
    for part in stage.parts(job):
        part.run(job, Silent())


def test_reweigh_fits_the_strengths_and_rebuild_gives_the_same_bytes(
    copied: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_ledger(copied.folder.ledger)
    assert before.refit is None
    reweigh("coats", copied.workspace.root)
    ledger = read_ledger(copied.folder.ledger)
    refit = ledger.refit
    assert refit is not None and refit.merged_at == (0.5, 0.5, 0.5)
    assert refit.chosen_after < refit.chosen_before
    assert [row.strength for row in ledger.rounds] == [0.5, 0.5, 0.5]
    assert [row.final_strength for row in ledger.rounds] == list(refit.strengths)
    assert (ledger.final_sha256 == before.final_sha256) == (refit.strengths == refit.merged_at)
    assert sha256(copied.folder.final) == ledger.final_sha256
    out = tmp_path / "final.safetensors"
    rebuild_round("coats", 3, None, [], out, copied.workspace.root, final=True)
    assert sha256(out) == ledger.final_sha256
    assert "the same bytes as the final checkpoint has" in capsys.readouterr().out
    assert all(part.run(copied, Silent()).already for part in stage.parts(copied))


def test_a_refit_holds_while_the_recipe_wants_it_or_a_person_asked(
    copied: Job, workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = []
    first = settle.refit

    def counted(*asked: Any) -> Refit:
        fitted.append(asked)
        return first(*asked)

    monkeypatch.setattr(settle, "refit", counted)
    rounds = history(copied, 3)
    text, recipe = copied.recipe_path.read_text(), workshop / "refits.toml"
    recipe.write_text(text.replace("strength = 0.5", 'strength = "damped"'))
    wants = load_job(recipe, copied.workspace.root)
    run(wants)
    assert refitted(wants, rounds) is not None and len(fitted) == 1
    recipe.write_text(text.replace("strength = 0.5", 'strength = "damped"\nrefit = false'))
    declines = load_job(recipe, copied.workspace.root)
    run(declines)
    ledger = read_ledger(declines.folder.ledger)
    assert ledger.refit is None and refitted(declines, rounds) is None
    assert ledger.final_sha256 == ledger.rounds[-1].checkpoint_sha256
    reweigh("coats", copied.workspace.root)
    assert refitted(declines, rounds) is not None, "asked for by hand, it stays"
    run(declines)
    assert read_ledger(declines.folder.ledger).refit is not None


def test_a_fork_shares_its_first_rounds_and_trains_the_rest(copied: Job, tmp_path: Path) -> None:
    root = copied.workspace.root
    recipe = fork("coats", 2, "branch", root, tmp_path)
    text = recipe.read_text()
    assert "learning_rate = 0.002" in text
    recipe.write_text(text.replace("seed = 5", "seed = 5", 1).replace("count = 3", "count = 2"))
    job = load_job(recipe, root)
    trained = [p.run(job, Silent()).already for p in stage.parts(job) if p.name.endswith("train")]
    assert trained == [True, True]
    run(job)
    ledger, source = read_ledger(job.folder.ledger), read_ledger(copied.folder.ledger)
    assert [row.sha256 for row in ledger.rounds] == [row.sha256 for row in source.rounds[:2]]
    assert ledger.build == "branch"
    assert job.folder.round(1).lora.samefile(copied.folder.round(1).lora)
    with pytest.raises(RequestError, match="is there already"):
        fork("coats", 2, "branch", root, tmp_path)
    with pytest.raises(RequestError, match="--round 4: coats has rounds 1 to 3"):
        fork("coats", 4, "other", root, tmp_path)


def test_more_rounds_go_on_where_the_law_ended(copied: Job, workshop: Path) -> None:
    before = read_ledger(copied.folder.ledger)
    add_rounds(copied, 1)
    job = load_job(workshop / "finished.toml", copied.workspace.root)
    assert len(job.recipe.law()) == 4
    with pytest.raises(RequestError, match="coats is not finished"):
        add_rounds(job, 1)
    run(job)
    ledger = read_ledger(job.folder.ledger)
    assert ledger.rounds[:3] == before.rounds
    assert ledger.rounds[3].learning_rate == pytest.approx(2.5e-4)
    assert ledger.final_sha256 == ledger.rounds[3].checkpoint_sha256 != before.final_sha256
