"""Rounds without masks are what they were before there were any: what was trained stays done."""

from collections.abc import Callable
from dataclasses import replace

from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job
from pipeline.rounds.training import training

BEFORE = {
    "noise_offset": 0.0,
    "multires_noise": 0,
    "multires_discount": 0.3,
    "input_perturbation": 0.0,
    "min_snr_gamma": None,
    "debiased": False,
    "loss": "l2",
    "huber_c": 0.1,
    "huber_schedule": "snr",
    "batch_size": 4,
    "optimizer": "adamw",
    "scheduler": "constant_with_warmup",
}
"""What a round's fingerprint held of [train], by the keys beside which the masks' now stand."""


def test_a_round_without_masks_has_the_fingerprint_of_before(
    fresh_job: Callable[..., Job],
) -> None:
    job = fresh_job()
    plan = training(job, job.recipe.law()[0], (), None, 1)
    train = plan.settings["train"]
    assert {key: train.get(key) for key in BEFORE} == BEFORE
    assert not {key for key in train if "mask" in key}
    assert plan.fingerprint == fingerprint(stage="train", **plan.settings)
    # What latents were made from stands in it as one digest, which then names their folder too.
    assert plan.settings["latents"] == plan.latents.name
    masks = {"masked_loss": True, "unmasked_weight": 0.1}
    law = job.recipe.law()[0]
    masked = training(job, replace(law, train=law.train.model_copy(update=masks)), (), None, 1)
    assert masked.settings == {**plan.settings, "train": {**train, **masks}}
    assert masked.fingerprint != plan.fingerprint
