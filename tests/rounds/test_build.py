"""Whole builds on a tiny base: the ledger, exactness, the gate, resume."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.ledger import Ledger, read_ledger
from pipeline.artefacts.runs import products
from pipeline.errors import GateStopped
from pipeline.progress import Silent
from pipeline.rounds import rebuild, stage
from pipeline.rounds.split import Split
from pipeline.rounds.training import pictures
from pipeline.stages import DATA_STAGES
from pipeline.train.run import Run

JobMaker = Callable[..., Job]

RUN = """
import sys
from pathlib import Path
from pipeline.artefacts.job import load_job
from pipeline.progress import Silent
from pipeline.rounds.stage import parts
job = load_job(Path(sys.argv[1]), Path(sys.argv[2]))
for part in parts(job):
    part.run(job, Silent())
"""


def build(job: Job) -> Ledger:
    for part in stage.parts(job):
        part.run(job, Silent())
    return read_ledger(job.folder.ledger)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_ledger_tells_every_round(finished: Job) -> None:
    ledger = read_ledger(finished.folder.ledger)
    assert ledger.status == "finished"
    assert [row.round for row in ledger.rounds] == [1, 2, 3]
    assert [row.learning_rate for row in ledger.rounds] == [2e-3, 1e-3, 5e-4]
    assert ledger.heldout_pictures == 7
    for row in ledger.rounds:
        assert row.steps == 8 and row.strength == 0.5 and row.decision == "always"
        assert row.sha256 == sha256(finished.folder.root / row.lora)
        assert row.seconds > 0 and 0 <= row.cast_loss < 0.5
    assert ledger.final_sha256 == sha256(finished.folder.final)
    assert ledger.final_sha256 == ledger.rounds[-1].checkpoint_sha256


def test_each_round_starts_where_the_last_one_ended(finished: Job) -> None:
    """The adapter route before the merge and the merged file after it have one held-out loss."""
    rows = read_ledger(finished.folder.ledger).rounds
    for before, after in pairwise(rows):
        assert after.heldout_before == pytest.approx(before.heldout_after, rel=2e-3)


def test_the_final_checkpoint_is_origin_plus_all_deltas(finished: Job, workshop: Path) -> None:
    origin = load_file(workshop / "base.safetensors")
    final = load_file(finished.folder.final)
    assert list(final) == list(origin)
    kohya = [load_file(finished.folder.round(k).lora) for k in (1, 2, 3)]
    touched = 0
    for key, weight in origin.items():
        total, found = weight.double(), False
        for lora in kohya:
            name = NAMES.get(key)
            if name is None or f"{name}.alpha" not in lora:
                continue
            up, down = lora[f"{name}.lora_up.weight"], lora[f"{name}.lora_down.weight"]
            scale = 0.5 * float(lora[f"{name}.alpha"]) / down.shape[0]
            total += scale * (up.flatten(1).double() @ down.flatten(1).double()).reshape(
                weight.shape
            )
            found = True
        touched += found
        assert final[key].dtype == weight.dtype
        if not found and NAMES.get(key) is None and not key.startswith("model."):
            assert final[key].equal(weight)
        elif found:
            unit = torch.finfo(torch.float16).eps * total.abs().clamp(min=2**-14)
            assert bool(((final[key].double() - total).abs() <= unit).all()), key
    assert touched >= 3


NAMES = {
    # A few layers, mapped by hand: one linear, one 1x1, one 3x3 convolution.
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight": (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    ),
    "model.diffusion_model.input_blocks.1.1.proj_in.weight": (
        "lora_unet_down_blocks_0_attentions_0_proj_in"
    ),
    "model.diffusion_model.input_blocks.1.0.in_layers.2.weight": (
        "lora_unet_down_blocks_0_resnets_0_conv1"
    ),
    "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.2.weight": (
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2"
    ),
}


def test_held_out_pictures_are_never_trained_on(finished: Job) -> None:
    split = Split.model_validate_json(finished.folder.split.read_bytes())
    for law in finished.recipe.law():
        seen = pictures(finished, law)
        assert len(seen.train) == 17
        assert not set(seen.train) & split.md5s


def test_a_second_run_does_nothing(finished: Job) -> None:
    stamps = {p: p.stat().st_mtime_ns for p in finished.folder.root.rglob("*") if p.is_file()}
    outcomes = [part.run(finished, Silent()) for part in stage.parts(finished)]
    assert all(outcome.already for outcome in outcomes)
    after = {p: p.stat().st_mtime_ns for p in finished.folder.root.rglob("*") if p.is_file()}
    changed = {p.name for p in after if after[p] != stamps.get(p)}
    assert changed <= {".lock", "build.json"}
    ledger = read_ledger(finished.folder.ledger)
    finished.folder.round(1).grid.unlink()
    again = build(finished)
    assert finished.folder.round(1).grid.exists()
    assert (again.status, again.final_sha256) == (ledger.status, ledger.final_sha256)


def test_a_lost_checkpoint_is_made_again_bit_for_bit(finished: Job) -> None:
    path = finished.folder.round(2).checkpoint
    before = sha256(path)
    path.unlink()
    for part in stage.parts(finished):
        part.run(finished, Silent())
    assert sha256(path) == before


def test_auto_strength_never_makes_it_worse(fresh_job: JobMaker) -> None:
    job = fresh_job(("learning_rate = 2e-3", "learning_rate = 1e-3"))
    with suppress(GateStopped):
        build(job)
    ledger = read_ledger(job.folder.ledger)
    assert ledger.rounds
    for row in ledger.rounds:
        losses = {c.strength: c.loss for c in row.candidates}
        assert {0.0, 0.5, 1.0} <= set(losses) and 0 <= row.strength <= 1
        if row.decision == "rejected":
            assert row.strength == 0 and row.attempts == 2
        else:
            assert losses[row.strength] == min(losses.values())
            assert row.heldout_after < row.heldout_before


def test_the_gate_retries_weaker_then_stops(fresh_job: JobMaker) -> None:
    """At strength 0 no round can help: each is tried twice, and two of them end the build."""
    job = fresh_job(
        ("learning_rate = 2e-3", "learning_rate = 2e-3\nstrength = 0.0"), ("[8]", "[2]")
    )
    with pytest.raises(GateStopped, match="No round of coats lowered"):
        build(job)
    ledger = read_ledger(job.folder.ledger)
    assert ledger.status == "stopped by the gate"
    assert [row.decision for row in ledger.rounds] == ["rejected", "rejected"]
    assert [row.attempts for row in ledger.rounds] == [2, 2]
    assert ledger.rounds[0].learning_rate == 1e-3
    assert not job.folder.final.exists()
    choice = json.loads(job.folder.round(1).held_out.read_text())
    assert [a["learning_rate"] for a in choice["attempts"]] == [2e-3, 1e-3]
    for part in stage.parts(job)[:-1]:
        assert part.run(job, Silent()).already
        assert read_ledger(job.folder.ledger) == ledger, "what is noted stays as it ended"


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


def test_training_cut_off_after_a_save_ends_in_the_same_bytes(
    finished: Job, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(workshop / "workspace", tmp_path / "workspace")
    job = load_job(workshop / "finished.toml", tmp_path / "workspace")
    first = stage.parts(job)[0]
    advance, taken = Run.advance, []

    def counted(run: Run) -> None:
        taken.append(run.step)
        if len(taken) == 6:  # Steps 0 to 4 are taken, the resume point is after 3.
            raise PowerCut
        advance(run)

    monkeypatch.setattr(Run, "advance", counted)
    with pytest.raises(PowerCut):
        first.run(job, Silent())
    assert not first.run(job, Silent()).already
    assert taken == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7]
    assert sha256(job.folder.round(1).lora) == sha256(finished.folder.round(1).lora)
    assert not list(job.folder.round(1).train.glob("state*"))


def test_a_diffusers_folder_ends_in_a_folder(fresh_job: JobMaker) -> None:
    """Checkpoints are what the base is: the folder loads, and each round started from the last."""
    job = fresh_job(
        ('checkpoint = "base.safetensors"\nconfig = "pipeline"', 'checkpoint = "pipeline"'),
        ("count = 3", 'count = 2\ngate = "always"\nstrength = 0.5\nkeep = "last"'),
    )
    for data_stage in DATA_STAGES:
        data_stage.run(job, Silent())
    ledger = build(job)
    assert ledger.final == "final" and job.folder.final.is_dir()
    first, last = ledger.rounds
    assert last.heldout_before == pytest.approx(first.heldout_after, rel=2e-3)
    assert ledger.final_sha256 == last.checkpoint_sha256 != first.checkpoint_sha256
    assert not job.folder.round(1).checkpoint.exists()
    base = job.recipe.base.checkpoint
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        assert (job.folder.final / name).read_bytes() == (base / name).read_bytes()
    before = UNet2DConditionModel.from_pretrained(base, subfolder="unet").state_dict()
    after = UNet2DConditionModel.from_pretrained(job.folder.final, subfolder="unet").state_dict()
    key = "down_blocks.0.attentions.0.proj_in.weight"
    total = before[key].double()
    for number in (1, 2):
        lora = load_file(job.folder.round(number).lora)
        up, down, alpha = (
            lora[f"{NAMES['model.diffusion_model.input_blocks.1.1.proj_in.weight']}.{part}"]
            for part in ("lora_up.weight", "lora_down.weight", "alpha")
        )
        delta = up.flatten(1).double() @ down.flatten(1).double()
        total += 0.5 * float(alpha) / down.shape[0] * delta.reshape(total.shape)
    assert not before[key].equal(after[key])
    torch.testing.assert_close(after[key], total.float(), rtol=1e-6, atol=1e-7)
    again = rebuild.rebuild(
        rebuild.plan(job.folder, ledger, job.workspace.identities, 2), base.parent / "again"
    )
    assert again.sha256 == last.checkpoint_sha256
    shutil.rmtree(base.parent / "again")
    assert products(job) and all(part.run(job, Silent()).already for part in stage.parts(job))
    shutil.rmtree(job.folder.final)
    assert not stage.parts(job)[-1].run(job, Silent()).already
    assert job.folder.final.is_dir()


@pytest.mark.drill
def test_training_killed_at_random_ends_in_the_same_bytes(
    finished: Job, workshop: Path, tmp_path: Path
) -> None:
    shutil.copytree(workshop / "workspace", tmp_path / "workspace")
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, str(script), str(workshop / "finished.toml")]
    command.append(str(tmp_path / "workspace"))
    delays, kills = iter((5.5, 7.0, 9.0, 11.0)), 0
    while True:
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        delay = next(delays, None)
        if delay is None:
            assert process.wait(timeout=300) == 0
            break
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if process.returncode == 0:
            break
    assert kills >= 2
    folder = tmp_path / "workspace" / "builds" / "coats"
    assert sha256(folder / "final.safetensors") == sha256(finished.folder.final)
    assert sha256(folder / "final.lora.safetensors") == sha256(finished.folder.final_lora)
