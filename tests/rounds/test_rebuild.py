"""Rounds made again from the LoRAs of a real build: the same bytes, or what else was asked."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

import merge
from pipeline.artefacts.job import Job
from pipeline.artefacts.ledger import Ledger, read_ledger
from pipeline.artefacts.workspace import BuildFolder
from pipeline.errors import RequestError, UrushiError
from pipeline.rounds.rebuild import Plan, plan, rebuild


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def folder(finished: Job, tmp_path: Path) -> BuildFolder:
    """A copy of the build as it is once its checkpoints were dropped."""
    root = tmp_path / "builds" / "coats"
    root.mkdir(parents=True)
    shutil.copy(finished.folder.ledger, root)
    for number in (1, 2, 3):
        lora = BuildFolder(root).round(number).lora
        lora.parent.mkdir(parents=True)
        shutil.copy(finished.folder.round(number).lora, lora)
    return BuildFolder(root)


@pytest.fixture
def ledger(folder: BuildFolder) -> Ledger:
    return read_ledger(folder.ledger)


def planned(finished: Job, folder: BuildFolder, ledger: Ledger, *asked: object) -> Plan:
    return plan(folder, ledger, finished.workspace.identities, *asked)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_round_is_rebuilt_bit_for_bit(
    finished: Job, folder: BuildFolder, ledger: Ledger, tmp_path: Path, number: int
) -> None:
    made_of = planned(finished, folder, ledger, number)
    assert [link.round for link in made_of.links] == list(range(1, number + 1))
    assert made_of.notes == ()
    out = tmp_path / "elsewhere.safetensors"
    seen: list[tuple[int, int]] = []
    made = rebuild(made_of, out, lambda done, total: seen.append((done, total)))
    assert made.sha256 == sha256(out) == ledger.rounds[number - 1].checkpoint_sha256
    assert sha256(out) == sha256(finished.folder.round(number).checkpoint)
    assert seen[-1] == (made.report.tensors, made.report.tensors)


def test_other_strengths_are_the_same_sum_at_these(
    finished: Job, folder: BuildFolder, ledger: Ledger, tmp_path: Path
) -> None:
    made_of = planned(finished, folder, ledger, 2, [0.25, 1.5])
    assert made_of.expected is None
    rebuild(made_of, tmp_path / "other.safetensors")
    loras = [folder.round(1).lora, folder.round(2).lora]
    addends = [merge.Addend(loras[0], 0.25), merge.Addend(loras[1], 1.5)]
    merge.merge(finished.recipe.base.checkpoint, addends, tmp_path / "by_hand.safetensors")
    by_hand = load_file(tmp_path / "by_hand.safetensors")
    other = load_file(tmp_path / "other.safetensors")
    assert list(other) == list(by_hand)
    assert all(other[key].equal(by_hand[key]) for key in by_hand)
    its_own = load_file(finished.folder.round(2).checkpoint)
    assert not all(other[key].equal(its_own[key]) for key in by_hand)


def test_the_strengths_that_were_chosen_give_the_rounds_own_bytes(
    finished: Job, folder: BuildFolder, ledger: Ledger, tmp_path: Path
) -> None:
    made_of = planned(finished, folder, ledger, 2, [0.5, 0.5])
    assert made_of.expected == ledger.rounds[1].checkpoint_sha256
    rebuild(made_of, tmp_path / "out.safetensors")


def test_dropped_rounds_are_left_out(
    finished: Job, folder: BuildFolder, ledger: Ledger, tmp_path: Path
) -> None:
    made_of = planned(finished, folder, ledger, 3, None, [1, 2])
    assert [link.round for link in made_of.links] == [3]
    assert made_of.notes == (
        "round 1 is left out, as asked",
        "round 2 is left out, as asked",
    )
    out = tmp_path / "third.safetensors"
    rebuild(made_of, out)
    with safe_open(out, "pt") as file:
        assert file.metadata()["urushi.rounds"] == "3"
    # A dropped round's LoRA need not be there.
    folder.round(1).lora.unlink()
    assert planned(finished, folder, ledger, 3, None, [1, 2]) == made_of


def test_a_rejected_round_is_left_out_with_a_note(
    finished: Job, folder: BuildFolder, ledger: Ledger, tmp_path: Path
) -> None:
    """As the ledger has it: the checkpoint of a rejected round is the one before."""
    first, second, third = ledger.rounds
    update = {"decision": "rejected", "strength": 0.0}
    rejected = second.model_copy(update={**update, "checkpoint_sha256": first.checkpoint_sha256})
    ledger = ledger.model_copy(update={"rounds": (first, rejected, third)})
    made_of = planned(finished, folder, ledger, 2)
    assert [link.round for link in made_of.links] == [1]
    assert made_of.notes == ("round 2 was rejected, so it is left out",)
    out = tmp_path / "out.safetensors"
    assert rebuild(made_of, out).sha256 == first.checkpoint_sha256
    with pytest.raises(RequestError, match=r"3 strengths for 2 merged rounds \(1, 3\)"):
        planned(finished, folder, ledger, 3, [1.0, 1.0, 1.0])
    with pytest.raises(RequestError, match="origin itself"):
        planned(finished, folder, ledger, 2, None, [1])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((0,), "Round 0 of coats is the origin itself.*: 1, 2, 3"),
        ((4,), "--round 4: coats has no such round. Recorded are: 1, 2, 3"),
        ((-1,), "no such round"),
        ((2, None, [7]), "--drop 7: coats has no such round"),
        ((2, None, [3]), "--drop 3 is after round 2"),
        ((2, [0.5]), r"1 strengths for 2 merged rounds \(1, 2\)"),
        ((2, [0.5, 0.5], [1]), r"2 strengths for 1 merged rounds \(2\)"),
    ],
)
def test_wrong_requests(
    finished: Job, folder: BuildFolder, ledger: Ledger, asked: tuple[object, ...], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        planned(finished, folder, ledger, *asked)


def test_missing_and_changed_loras_are_named(
    finished: Job, folder: BuildFolder, ledger: Ledger
) -> None:
    folder.round(1).lora.unlink()
    content = bytearray(folder.round(3).lora.read_bytes())
    content[-1] ^= 1
    folder.round(3).lora.write_bytes(content)
    with pytest.raises(UrushiError) as refused:
        planned(finished, folder, ledger, 3)
    said = str(refused.value)
    assert f"{folder.round(1).lora} of round 1 is missing" in said
    assert f"{folder.round(3).lora} of round 3 has changed" in said
    assert "round 2" not in said


def test_the_origin_must_be_the_one_it_was(
    finished: Job, folder: BuildFolder, ledger: Ledger, tmp_path: Path
) -> None:
    moved = tmp_path / "moved.safetensors"
    shutil.copy(finished.recipe.base.checkpoint, moved)
    gone = ledger.model_copy(update={"origin": str(tmp_path / "gone.safetensors")})
    with pytest.raises(UrushiError, match=r"origin .*gone\.safetensors is missing"):
        planned(finished, folder, gone, 1)
    made_of = planned(finished, folder, gone, 1, None, (), moved)
    made = rebuild(made_of, tmp_path / "out.safetensors")
    assert made.sha256 == ledger.rounds[0].checkpoint_sha256
    content = bytearray(moved.read_bytes())
    content[-1] ^= 1
    moved.write_bytes(content)
    with pytest.raises(UrushiError, match="is not the file that coats started from"):
        planned(finished, folder, gone, 1, None, (), moved)


def test_other_bytes_than_the_rounds_own_are_told(
    finished: Job, folder: BuildFolder, ledger: Ledger, tmp_path: Path
) -> None:
    made_of = replace(planned(finished, folder, ledger, 1), expected="0" * 64)
    with pytest.raises(UrushiError, match="is not that of the round's checkpoint"):
        rebuild(made_of, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").exists()
