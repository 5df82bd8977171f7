"""Rounds whose text encoders learn, and one after them whose do not: judged, merged, rebuilt."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import merge
from pipeline.artefacts.chain import CAPTIONS_FILE
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.ledger import read_ledger
from pipeline.artefacts.records import CaptionRecord, read_records
from pipeline.artefacts.strength import Strength
from pipeline.models.load import load_text
from pipeline.progress import Silent
from pipeline.rounds.chain import sha256
from pipeline.rounds.evaluate import HeldOut
from pipeline.rounds.history import history
from pipeline.rounds.pictures import pictures
from pipeline.rounds.rebuild import plan, rebuild
from pipeline.rounds.stage import parts
from pipeline.rounds.training import training
from pipeline.train.beside import covers_text
from pipeline.train.conditioning import Spoken, encoded
from pipeline.train.run import Run

MIXED = """
[[round]]
train = { text_encoder_rate = 0.0 }
"""


@pytest.fixture(scope="module")
def built(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two rounds with the encoder, at searched strengths of its own, and one without."""
    text = (workshop / "build.toml").read_text()
    for old, new in (
        ('name = "coats"', 'name = "worded"'),
        ("count = 3", 'count = 2\ngate = "always"\nencoders_apart = true'),
        # Both rates are too high, the encoder's far more, so that one strength does not suit both.
        ("[train]\n", "[train]\ntext_encoder_rate = 10.0\n"),
        ("learning_rate = 2e-3", "learning_rate = 2e-2"),
        ("steps = [8]", "steps = [24, 8]"),
    ):
        assert old in text
        text = text.replace(old, new)
    recipe = workshop / "worded.toml"
    recipe.write_text(text + MIXED)
    job = load_job(recipe, workshop / "workspace")
    for part in parts(job):
        part.run(job, Silent())
    return job


def test_the_encoders_learn_and_are_merged(built: Job) -> None:
    rows = read_ledger(built.folder.ledger).rounds
    assert [covers_text(built.folder.round(row.round).lora) for row in rows] == [True, True, False]
    base = built.recipe.base
    states = [
        load_text(base, place).encode(["red circle"]).hidden
        for place in (None, *(built.folder.round(k).checkpoint for k in (1, 2, 3)))
    ]
    assert all(row.strength > 0 for row in rows)
    assert (states[1] - states[0]).abs().max() > 1e-3
    assert states[3].equal(states[2])
    assert rows[0].heldout_after < rows[0].heldout_before


def test_a_strength_is_judged_on_what_a_merge_at_it_says(built: Job) -> None:
    """Multipliers apply to the encoder too: adapters beside equal weights that were merged."""
    links = history(built, 1).links
    seen = pictures(built, built.recipe.law()[0])
    chosen = seen.split.chooses
    beside = HeldOut(built.recipe, None, [links[0].lora], live=True)
    merged = HeldOut(built.recipe, built.folder.round(1).checkpoint, (), live=True)
    assert isinstance(links[0].strength, tuple)
    at = beside.losses(seen.folders, chosen, (links[0].strength,))
    torch.testing.assert_close(at, merged.losses(seen.folders, chosen, ()), atol=0, rtol=2e-3)
    # The encoder's part of it shows in the losses.
    tensors = load_file(links[0].lora)
    assert any(t.abs().max() > 0 for k, t in tensors.items() if "lora_te_" in k and "_up" in k)


def test_a_round_without_learning_encoders_is_told_what_the_last_ones_say(built: Job) -> None:
    """Text of exactly the checkpoint that it starts from, not of the origin's cached shards."""
    law, links = built.recipe.law()[2], history(built, 2).links
    checkpoint = built.folder.round(2).checkpoint
    asked = training(built, law, links, checkpoint, 1)
    run = Run(built.recipe.model_copy(update={"train": law.train}), asked)
    assert not any(name.startswith("encoders.") for name in run.parameters)
    inputs = run.feed.at(0)
    assert isinstance(inputs.told, Spoken) and run.network.text is not None
    with torch.no_grad():
        told = encoded(run.network.text, inputs.told).hidden
    folders = pictures(built, law).folders
    written = read_records(folders.captions / CAPTIONS_FILE, CaptionRecord)
    captions = ["", *(record.caption for record in written)]
    last = load_text(built.recipe.base, checkpoint).encode(captions).hidden
    first = load_text(built.recipe.base).encode(captions).hidden
    for row in told:
        assert min((row - state).abs().max() for state in last) < 1e-5
        assert min((row - state).abs().max() for state in first) > 1e-4


def test_every_round_is_rebuilt_bit_for_bit(built: Job, tmp_path: Path) -> None:
    ledger, out = read_ledger(built.folder.ledger), tmp_path / "again.safetensors"
    for row in ledger.rounds:
        asked = plan(built.folder, ledger, built.workspace.identities, row.round)
        made = rebuild(asked, out)
        assert made.sha256 == row.checkpoint_sha256
        assert made.sha256 == sha256(built.folder.round(row.round).checkpoint)


def test_the_encoders_strength_is_its_own(built: Job) -> None:
    """Found beside the UNet's on the choosing half, where no one strength for both does better."""
    choice, (row, *_) = history(built, 1).laid[0].choice, read_ledger(built.folder.ledger).rounds
    unet, text = row.strength, row.encoder_strength
    assert text is not None and unet != text and choice.merged_at == (unet, text)
    seen = pictures(built, built.recipe.law()[0])
    held_out = HeldOut(built.recipe, None, [built.folder.round(1).lora], live=True)

    def loss(strength: Strength) -> float:
        return float(held_out.losses(seen.folders, seen.split.chooses, (strength,)).mean())

    assert loss((unet, text)) < min(tried.loss for tried in choice.counts.candidates)
    lora = load_file(built.folder.round(1).lora)
    origin, merged = (
        load_text(built.recipe.base, place).readers[0].encoder.state_dict()
        for place in (None, built.folder.round(1).checkpoint)
    )
    name = next(key for key in origin if key.endswith("layers.0.mlp.fc1.weight"))
    module = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    down, up = lora[f"{module}.lora_down.weight"], lora[f"{module}.lora_up.weight"]
    delta = text * float(lora[f"{module}.alpha"]) / len(down) * up @ down
    torch.testing.assert_close(merged[name], origin[name] + delta, atol=2e-4, rtol=1e-3)


def test_strengths_are_refitted_apart_and_the_final_checkpoint_has_them(
    built: Job, tmp_path: Path
) -> None:
    ledger = read_ledger(built.folder.ledger)
    refit, rows = ledger.refit, ledger.rounds
    assert refit is not None and refit.encoders is not None and refit.passes > 5
    assert refit.chosen_after <= refit.chosen_before
    assert [row.final_at for row in rows if row.round in refit.rounds] == list(refit.final)
    last = plan(built.folder, ledger, built.workspace.identities, rows[-1].round, final=True)
    assert rebuild(last, tmp_path / "final.safetensors").sha256 == ledger.final_sha256
    # As one LoRA the chain says the same.
    merge.merge(
        built.recipe.base.checkpoint,
        [merge.Addend(built.folder.final_lora, 1.0)],
        tmp_path / "one.safetensors",
    )
    one, final = (
        load_text(built.recipe.base, place).encode(["red circle"]).hidden
        for place in (tmp_path / "one.safetensors", built.folder.final)
    )
    torch.testing.assert_close(one, final, atol=2e-3, rtol=1e-2)


def test_run_again_nothing_is_made(built: Job) -> None:
    assert all(part.run(built, Silent()).already for part in parts(built))
