"""The rate inside a round, against diffusers' schedules and by numbers worked by hand."""

import pytest
import torch
from diffusers.optimization import get_scheduler

from pipeline.errors import RequestError
from pipeline.recipe.train import Train
from pipeline.train.schedule import factor, new_schedule, warmup_steps

STEPS = 40


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.ones(1)], "lr": 2.0}], lr=1.0)


def rates(schedule: torch.optim.lr_scheduler.LRScheduler) -> list[float]:
    seen = []
    for _ in range(STEPS):
        seen.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    "name", ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts"]
)
def test_without_a_floor_they_are_diffusers(name: str) -> None:
    train = Train.model_validate({"scheduler": name, "warmup": 0.25, "cycles": 3, "min_rate": 0})
    theirs = get_scheduler(
        name, optimizer(), num_warmup_steps=10, num_training_steps=STEPS, num_cycles=3
    ) if name == "cosine_with_restarts" else get_scheduler(
        name, optimizer(), num_warmup_steps=10, num_training_steps=STEPS
    )  # fmt: skip
    assert rates(new_schedule(train, optimizer(), STEPS)) == pytest.approx(rates(theirs), abs=1e-12)


def test_a_floor_is_where_the_fall_ends() -> None:
    """Cosine to a tenth: halfway it is at 0.1 + 0.9 / 2."""
    train = Train(scheduler="cosine", min_rate=0.1)
    assert factor(train, 10, 10, 110) == 1
    assert factor(train, 60, 10, 110) == pytest.approx(0.55)
    assert factor(train, 110, 10, 110) == pytest.approx(0.1)
    assert factor(train, 5, 10, 110) == 0.5


def test_restarts_and_powers_by_hand() -> None:
    twice = Train(scheduler="cosine_with_restarts", cycles=2, min_rate=0)
    shares = [factor(twice, step, 0, 100) for step in (0, 25, 49, 50, 75, 100)]
    assert shares == pytest.approx([1, 0.5, 0.5 * (1 - 0.998026728), 1, 0.5, 0])
    square = Train(scheduler="polynomial", power=2.0, min_rate=0)
    assert [factor(square, s, 0, 10) for s in (0, 5, 10)] == pytest.approx([1, 0.25, 0])


def test_warm_up_in_steps_or_a_share() -> None:
    assert warmup_steps(Train(warmup=0.1), 250) == 25
    assert warmup_steps(Train(warmup_steps=250), 1000) == 250
    assert warmup_steps(Train(warmup_steps=0), 1000) == 0
    assert warmup_steps(Train(scheduler="constant", warmup_steps=250), 1000) == 0
    with pytest.raises(RequestError, match=r"warmup_steps is 250 and the round has 250 steps"):
        warmup_steps(Train(warmup_steps=250), 250)


def test_groups_keep_their_proportion() -> None:
    two = torch.optim.SGD(
        [{"params": [torch.ones(1)], "lr": 4.0}, {"params": [torch.ones(1)], "lr": 1.0}], lr=1.0
    )
    schedule = new_schedule(Train(scheduler="linear", warmup=0, min_rate=0), two, STEPS)
    for _ in range(10):
        two.step()
        schedule.step()
    assert schedule.get_last_lr() == pytest.approx([3.0, 0.75])
