"""Batches dealt to steps and devices: each counts once, and every sample of a step alike."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pipeline.recipe import BuildRecipe
from pipeline.train.deal import Deal
from pipeline.train.feed import Feed
from pipeline.train.plan import RoundTraining

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]
BATCHES, ACCUMULATION = 6, 4
"""Ten pictures in two buckets of five, two a batch: six batches an epoch, in steps of 4 and 2."""


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_every_batch_counts_once_on_one_device(plan: TrainMaker, devices: int) -> None:
    recipe, training = plan(train={"accumulation": ACCUMULATION})
    training = replace(training, epochs=1, steps=None)
    dealt: dict[int, list[int]] = {0: [], 1: []}
    for place in range(devices):
        feed = Feed(recipe, training, 1000)
        assert feed.steps_per_epoch == BATCHES
        deal = Deal(feed, BATCHES, ACCUMULATION, torch.device("cpu"), devices, place)
        assert deal.steps == 2
        for step, batches in dealt.items():
            shares = list(deal.at(step))
            # Each device ends a step once, whether a batch of it counts or not.
            assert [share.last for share in shares] == [False] * (len(shares) - 1) + [True]
            batches += [share.batch for share in shares if share.counts]
            for share in shares:
                assert share.inputs.latents.equal(feed.at(share.batch).latents)
                wanted = range(step * ACCUMULATION, min(BATCHES, (step + 1) * ACCUMULATION))
                assert share.samples == sum(feed.size_at(batch) for batch in wanted)
    assert sorted(dealt[0]) == [0, 1, 2, 3] and sorted(dealt[1]) == [4, 5]


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_the_first_batches_are_the_same_on_any_devices(plan: TrainMaker, devices: int) -> None:
    """Eight, of a round of six: two come again. Of three devices' nine one counts for nothing."""
    recipe, training = plan()
    feed = Feed(recipe, training, 1000)
    counted = []
    for place in range(devices):
        deal = Deal(feed, BATCHES, devices, torch.device("cpu"), devices, place)
        shares = list(deal.first(8))
        assert [share.last for share in shares] == [False] * (len(shares) - 1) + [True]
        assert all(share.samples == 8 * len(share.inputs.latents) for share in shares)
        counted += [share.batch for share in shares if share.counts]
    assert sorted(counted) == [0, 0, 1, 1, 2, 3, 4, 5]
