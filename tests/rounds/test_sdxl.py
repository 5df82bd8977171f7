"""Rounds over a base of SDXL's shape, from pictures to grids."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.ledger import read_ledger
from pipeline.models.inspect import inspect
from pipeline.models.load import load_unet
from pipeline.models.shards import open_latents, open_texts
from pipeline.progress import Silent
from pipeline.recipe.base import Base
from pipeline.rounds.stage import parts
from pipeline.rounds.training import pictures
from pipeline.train.conditioning import conditioning, predict
from pipeline.train.sampling import FOLDER as SAMPLES


@pytest.fixture(scope="module")
def built(workshop_xl: Path) -> Job:
    text = (workshop_xl / "build.toml").read_text()
    text = text.replace("[rounds]\n", '[rounds]\ngate = "always"\nstrength = 0.5\n')
    text = text.replace("[train]\n", "[train]\nsample_every = 4\n")
    recipe = workshop_xl / "two.toml"
    recipe.write_text(text.replace("count = 3", "count = 2"))
    job = load_job(recipe, workshop_xl / "workspace")
    for part in parts(job):
        part.run(job, Silent())
    return job


def test_rounds_are_trained_chosen_merged_and_drawn(built: Job) -> None:
    first, second = read_ledger(built.folder.ledger).rounds
    assert second.heldout_before == pytest.approx(first.heldout_after, rel=2e-3)
    assert first.heldout_after < first.heldout_before
    facts = inspect(Base(checkpoint=built.folder.final, config=built.recipe.base.config))
    assert facts.family == "sdxl"
    assert built.folder.round(2).grid.is_file()
    samples = sorted((built.folder.round(2).train / SAMPLES).iterdir())
    assert len({path.read_bytes() for path in samples}) == len(samples) > 1


def test_the_merged_unet_is_the_origin_with_the_deltas(built: Job) -> None:
    base = built.recipe.base
    origin, final = load_unet(base), load_unet(base, built.folder.final)
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    total = origin.get_submodule(name).weight.clone()
    for number in (1, 2):
        lora = load_file(built.folder.round(number).lora)
        module = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
        up, down = lora[f"{module}.lora_up.weight"], lora[f"{module}.lora_down.weight"]
        total += 0.5 * float(lora[f"{module}.alpha"]) / down.shape[0] * up @ down
    torch.testing.assert_close(final.get_submodule(name).weight, total, atol=2e-4, rtol=1e-3)


def test_the_network_is_told_each_pictures_own_sizes(built: Job) -> None:
    """Sizes and the pooled text reach the network: another crop or text, another prediction."""
    seen = pictures(built, built.recipe.law()[0])
    latents, texts = open_latents(seen.folders.latents), open_texts(seen.folders.text)
    row = latents.record(seen.train[0])
    told = conditioning(texts, [(row.md5, 0)], [row])
    assert told.added is not None
    assert told.added.time_ids.tolist() == [
        [
            row.original_height,
            row.original_width,
            row.crop_top,
            row.crop_left,
            row.height,
            row.width,
        ]
    ]
    assert {row.original_height, row.original_width} <= {40, 48, 64}
    unet = load_unet(built.recipe.base)
    shape = (1, 4, row.height // 2, row.width // 2)
    noisy, at = torch.randn(shape, generator=torch.Generator().manual_seed(1)), torch.tensor([500])
    said = predict(unet, noisy, at, told)
    cropped = conditioning(texts, [(row.md5, 0)], [row.model_copy(update={"crop_top": 9})])
    other = conditioning(texts, [("", 0)], [row])
    assert not torch.equal(predict(unet, noisy, at, cropped), said)
    assert other.added is not None and not torch.equal(other.added.pooled, told.added.pooled)
