"""Parameters sorted by rate: each group follows the schedule from its own peak."""

import torch
from torch import nn

from pipeline.recipe.train import Train
from pipeline.train.groups import by_rate, moments, order
from pipeline.train.optimizers import new_optimizer
from pipeline.train.schedule import factor, new_schedule

PEAKS = {"unet.a": 2e-4, "text.a": 5e-5, "unet.b": 2e-4}


def parameters() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.full((3,), 0.5)) for name in PEAKS}


def test_equal_rates_share_a_group_in_the_order_of_their_first() -> None:
    groups = by_rate(parameters(), PEAKS.__getitem__)
    assert [group.learning_rate for group in groups] == [2e-4, 5e-5]
    assert order(groups) == ("unet.a", "unet.b", "text.a")


def test_every_group_moves_by_the_schedule_from_its_own_peak() -> None:
    train = Train(optimizer="adamw", warmup=0.25, weight_decay=0)
    trained = parameters()
    optimizer = new_optimizer(train, by_rate(trained, PEAKS.__getitem__))
    schedule = new_schedule(train, optimizer, 8)
    for step in range(8):
        share = factor(train, step, 2, 8)
        assert [g["lr"] for g in optimizer.param_groups] == [2e-4 * share, 5e-5 * share]
        for parameter in trained.values():
            parameter.grad = torch.ones(3)
        optimizer.step()
        schedule.step()
    # Adam moves by its rate for a steady gradient: four times as far for four times the rate.
    moved = {name: 0.5 - p[0].item() for name, p in trained.items()}
    assert moved["unet.a"] == moved["unet.b"]
    torch.testing.assert_close(moved["unet.a"] / moved["text.a"], 4.0, atol=1e-2, rtol=0)


def test_moments_stay_with_their_parameters_when_groups_change() -> None:
    kept = moments({0: "of a", 1: "of b", 2: "of text"}, ("a", "b", "text"), ("a", "text", "b"))
    assert kept == {0: "of a", 2: "of b", 1: "of text"}
