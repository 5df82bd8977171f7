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


def test_the_first_batches_of_a_short_round_come_again(plan: TrainMaker) -> None:
    recipe, training = plan()
    feed = Feed(recipe, training, 1000)
    seen = []
    for place in range(2):
        deal = Deal(feed, BATCHES, 2, torch.device("cpu"), 2, place)
        seen.append([batch for batch, _ in deal.first(4)])
    assert seen == [[0, 2, 4, 0], [1, 3, 5, 1]]
