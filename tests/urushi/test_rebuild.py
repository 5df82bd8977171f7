import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.artefacts.identity import digest_file
from pipeline.artefacts.ledger import Ledger, RoundRow, write_ledger
from pipeline.artefacts.workspace import Workspace
from pipeline.errors import RequestError
from pipeline.rounds.chain import Link, Origin, write_chain
from urushi.rebuild import parse_strengths
from urushi.recipes import tiny_base

Urushi = Callable[..., subprocess.CompletedProcess[str]]

BASE = tiny_base() / "tiny.safetensors"
MODULE = "lora_unet_mid_block_resnets_0_conv1"
WEIGHT = "model.diffusion_model.middle_block.0.in_layers.2.weight"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def row(number: int, lora: Path, strength: float, decision: str, checkpoint: str) -> RoundRow:
    return RoundRow(
        round=number,
        dataset="set",
        lora=f"rounds/{number:02d}/lora.safetensors",
        sha256=sha256(lora),
        rank=2,
        alpha=2.0,
        learning_rate=1e-4,
        steps=1,
        strength=strength,
        heldout_before=1.0,
        heldout_after=1.0,
        improvement_low=0.0,
        improvement_high=0.0,
        decision=decision,
        candidates=(),
        attempts=1,
        train_loss=1.0,
        wanted=strength,
        final_strength=strength,
        buckets=(),
        anchor_before=None,
        anchor_after=None,
        drift=0.01,
        cosines={},
        effective_rank=2.0,
        intruders=0,
        peak_memory={},
        versions={},
        checkpoint_sha256=checkpoint,
        cast_loss=0.0,
        seconds=1.0,
        phases={},
    )


@pytest.fixture
def build(tmp_path: Path) -> Ledger:
    """Builds/coat of three rounds, the second rejected, as a build leaves it: LoRAs and ledger."""
    folder = Workspace(tmp_path / "workspace").build("coat")
    out, inner = load_file(BASE)[WEIGHT].shape[:2]
    origin = Origin("coat", BASE, digest_file(BASE))
    rows: list[RoundRow] = []
    links: tuple[Link, ...] = ()
    for number, strength in ((1, 0.7), (2, 0.0), (3, 0.9)):
        generator = torch.Generator().manual_seed(number)
        lora = folder.round(number).lora
        lora.parent.mkdir(parents=True)
        tensors = {
            f"{MODULE}.lora_down.weight": torch.randn(2, inner, 3, 3, generator=generator) * 0.1,
            f"{MODULE}.lora_up.weight": torch.randn(out, 2, 1, 1, generator=generator),
        }
        save_file(tensors, lora)
        if strength:
            links = (*links, Link(number, lora, digest_file(lora), strength))
            write_chain(origin, links, tmp_path / "checkpoint.safetensors")
        checkpoint = sha256(tmp_path / "checkpoint.safetensors")
        decision = "accepted" if strength else "rejected"
        rows.append(row(number, lora, strength, decision, checkpoint))
    ledger = Ledger(
        build="coat",
        recipe="coat.toml",
        seed=1,
        origin=str(BASE),
        origin_blake3=origin.blake3,
        prediction_type="epsilon",
        status="finished",
        stopped=None,
        trials=(),
        refit=None,
        baseline=None,
        heldout_pictures=8,
        heldout_origin=1.0,
        rounds=tuple(rows),
        final=None,
        final_sha256=None,
        final_lora=None,
        seconds={},
    )
    write_ledger(folder.ledger, ledger)
    return ledger


def test_a_round_by_the_builds_name(build: Ledger, urushi: Urushi, tmp_path: Path) -> None:
    ended = urushi("rebuild", "coat", "--round", "3")
    assert ended.returncode == 0, ended.stderr
    assert sha256(tmp_path / "coat-round-3.safetensors") == build.rounds[2].checkpoint_sha256
    said = ended.stdout
    assert "round 2 was rejected, so it is left out" in said
    assert "origin + 0.7 x round 1 + 0.9 x round 3" in said
    assert "the same bytes as round 3 had" in said


def test_a_changed_round_by_its_recipe(build: Ledger, urushi: Urushi, tmp_path: Path) -> None:
    (tmp_path / "set.toml").write_text('name = "set"\n[folder]\npath = "."\n')
    recipe = tmp_path / "coat.toml"
    text = f'name = "coat"\n[base]\ncheckpoint = "{BASE}"\n[dataset]\nrecipe = "set.toml"\n'
    recipe.write_text(text)
    words = ("--round", "3", "--drop", "1", "--strengths", "-0.5")
    ended = urushi("rebuild", recipe, *words)
    assert ended.returncode == 0, ended.stderr
    assert "origin + -0.5 x round 3" in ended.stdout and "same bytes" not in ended.stdout
    origin, made = load_file(BASE), load_file(tmp_path / "coat-round-3-changed.safetensors")
    lora = load_file(Workspace(tmp_path / "workspace").build("coat").round(3).lora)
    up, down = (lora[f"{MODULE}.lora_{half}.weight"] for half in ("up", "down"))
    delta = -0.5 * (up.flatten(1) @ down.flatten(1)).reshape(origin[WEIGHT].shape)
    wanted = (origin[WEIGHT].float() + delta).to(origin[WEIGHT].dtype)
    assert torch.allclose(made[WEIGHT].float(), wanted.float(), rtol=2e-3)
    assert all(made[key].equal(origin[key]) for key in origin if key != WEIGHT)


def test_what_cannot_be_rebuilt_says_why(
    build: Ledger, urushi_here: Urushi, tmp_path: Path
) -> None:
    folder = Workspace(tmp_path / "workspace").build("coat")
    inside = folder.root / "final.safetensors"
    for words, said in (
        (("cloak", "--round", "1"), "There are: coat."),
        (("coat", "--round", "0"), "the origin itself"),
        (("coat", "--round", "3", "--strengths", "1,x"), "'x' is not a number"),
        (("coat", "--round", "3", "--out", inside), "inside the build"),
    ):
        ended = urushi_here("rebuild", *words)
        assert (ended.returncode, "Traceback" in ended.stderr) == (2, False), ended.stderr
        assert said in ended.stderr
    folder.round(1).lora.unlink()
    ended = urushi_here("rebuild", "coat", "--round", "3", "--out", tmp_path / "out.safetensors")
    assert ended.returncode == 1
    assert "lora.safetensors of round 1 is missing" in ended.stderr
    assert not list(tmp_path.glob("*round*")) and not inside.exists()


def test_strengths() -> None:
    assert parse_strengths("0.5, -1,2e-1") == [0.5, -1.0, 0.2]
    for text in ("nan", "1,inf", "1,,2", ""):
        with pytest.raises(RequestError, match="--strengths"):
            parse_strengths(text)
