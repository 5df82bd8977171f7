"""A build directory edited by hand: what was changed is named; rules that changed make anew."""

import json
from pathlib import Path

import pytest

from pipeline.artefacts.chain import VERSIONS
from pipeline.artefacts.job import Job, load_job
from pipeline.errors import UrushiError
from pipeline.progress import Silent
from pipeline.rounds import chain, stage
from pipeline.rounds import pictures as room
from pipeline.rounds.chain import was_laid
from pipeline.rounds.finish import is_finished
from pipeline.rounds.history import history
from pipeline.rounds.pictures import pictures
from pipeline.rounds.split import draw_split


def run(job: Job) -> None:
    for part in stage.parts(job):
        part.run(job, Silent())


@pytest.mark.parametrize(
    ("name", "cut", "remedy"),
    [
        ("rounds/02/lora.safetensors", False, "delete .*rounds/02 to train the round again"),
        ("rounds/02/lora.safetensors", True, "delete .*rounds/02 to train the round again"),
        ("rounds/01/heldout.json", False, "delete .*rounds/01 to train the round again"),
        ("rounds/02/checkpoint.safetensors", False, "delete it: it is merged again"),
        ("final.safetensors", False, "move it away"),
        ("final.lora.safetensors", True, "move it away"),
    ],
)
def test_a_file_changed_by_hand_is_named(copied: Job, name: str, cut: bool, remedy: str) -> None:
    path = copied.folder.root / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.unlink()  # It may be a link to what another part wrote.
    path.write_bytes(content[:-1] if cut else content)
    with pytest.raises(UrushiError, match=rf"{name} is not what the build wrote.*{remedy}"):
        run(copied)
    assert path.read_bytes() == (content[:-1] if cut else content), "nothing was written over it"


@pytest.mark.drill
@pytest.mark.parametrize("cut", ["train", "merge"])
def test_a_recipe_that_was_put_back_accuses_nobody(
    copied: Job, cut: str, workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rate's files were written over the first one's, whose receipts stood beside them."""
    final = copied.folder.final.read_bytes()
    text = (workshop / "finished.toml").read_text()
    (workshop / "faster.toml").write_text(text.replace("2e-3", "3e-3"))
    other = load_job(workshop / "faster.toml", copied.workspace.root)
    if cut == "train":
        stage.train(other, Silent())
    else:
        with monkeypatch.context() as patched, pytest.raises(PowerCut):
            patched.setattr(chain, "measure", cut_off)
            run(other)
    run(copied)
    assert copied.folder.final.read_bytes() == final
    assert all(part.run(copied, Silent()).already for part in stage.parts(copied))


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


def cut_off(*_: object) -> None:
    raise PowerCut


def test_a_manifest_changed_by_hand_is_named_and_comes_back(copied: Job) -> None:
    path, law = copied.folder.split, copied.recipe.law()[0]
    whole = path.read_bytes()
    table = json.loads(whole)
    table["held_out"][0]["chooses"] = not table["held_out"][0]["chooses"]
    del table["held_out"][1]
    path.write_text(json.dumps(table))
    with pytest.raises(UrushiError, match=r"heldout\.json was changed by hand: 2 of its pictures"):
        run(copied)
    path.write_text("{")
    with pytest.raises(UrushiError, match=r"heldout\.json was changed by hand: .*delete it"):
        pictures(copied, law)
    path.unlink()
    pictures(copied, law)
    assert path.read_bytes() == whole
    assert all(part.run(copied, Silent()).already for part in stage.parts(copied))


@pytest.mark.parametrize("rule", ["split", "strength", "merge", "finish"])
def test_a_rule_that_changed_makes_its_products_stale(
    copied: Job, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = history(copied, 3)
    assert before.missing is None and is_finished(copied, before)
    monkeypatch.setitem(VERSIONS, rule, VERSIONS[rule] + 1)
    monkeypatch.setattr(room, "_drawn", draw_split)  # Without its memory.
    after = history(copied, 3)
    assert after.missing == (1 if rule in ("split", "strength") else None)
    assert (was_laid(copied, before.links) is None) == (rule == "merge")
    assert not is_finished(copied, before) or rule != "finish"
