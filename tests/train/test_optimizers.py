"""Every optimizer that a recipe may name: it learns, goes on exactly where it stopped, and says
what it cannot do."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import RequestError
from pipeline.recipe.optimizers import finds_its_rate, names
from pipeline.recipe.train import Train
from pipeline.train.groups import Group, by_rate
from pipeline.train.optimizers import judged, new_optimizer

# Paged optimizers say that a CPU has no pages; here that is no news.
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


FUSED, FOREACH = {"fused": True}, {"foreach": True}
NEEDED = {"ranger21": {"num_iterations": 40}}


def named(above: str, parameters: list[nn.Parameter]) -> dict[str, nn.Parameter]:
    return {f"{above}.{number}": p for number, p in enumerate(parameters)}


class Factors:
    """A linear and a convolutional LoRA, as `adapter` makes them, and something to learn."""

    def __init__(self, optimizer: str, rate: float, **settings: Any) -> None:
        generator = torch.Generator().manual_seed(3)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.linear = [nn.Parameter(normal(4, 16) * 0.2), nn.Parameter(torch.zeros(12, 4))]
        self.convolution = [
            nn.Parameter(normal(4, 8, 3, 3) * 0.2),
            nn.Parameter(torch.zeros(8, 4, 1, 1)),
        ]
        self.x, self.picture = normal(32, 16), normal(8, 8, 6, 6)
        self.wanted = self.x @ normal(16, 3) @ normal(3, 12) * 0.2
        self.name = optimizer
        self.optimizer = new_optimizer(
            Train(optimizer=optimizer, **settings),
            [
                Group(named("linear", self.linear), rate),
                Group(named("conv", self.convolution), rate),
            ],
        )

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.linear, *self.convolution]

    def loss(self) -> Tensor:
        said = self.x @ self.linear[0].T @ self.linear[1].T
        mixed = nn.functional.conv2d(
            nn.functional.conv2d(self.picture, self.convolution[0], padding=1), self.convolution[1]
        )
        return (said - self.wanted).pow(2).mean() + (mixed - self.picture).pow(2).mean()

    def learn(self, steps: int) -> float:
        """The loss after so many steps, where the optimizer wants it judged."""
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
        with judged(self.name, self.optimizer), torch.no_grad():
            return float(self.loss())

    def bits(self) -> bytes:
        return b"".join(p.detach().numpy().tobytes() for p in self.parameters)


def new(name: str, rate: float = 0.0, **settings: Any) -> Factors:
    rate = rate or (1.0 if finds_its_rate(name) else 1e-3)
    # Smaller parameters than these have states of 32 bits: here are none so large.
    needed = {"min_8bit_size": 1} if name.endswith("8bit") else NEEDED.get(name, {})
    return Factors(name, rate, **{"optimizer_args": needed, **settings})


@pytest.mark.parametrize("name", names())
def test_one_stopped_and_gone_on_gives_the_same_bits(name: str) -> None:
    """For every optimizer that there is: state saved, loaded as training does, and gone on."""
    undisturbed, stopped, resumed = new(name), new(name), new(name)
    started = undisturbed.bits()
    undisturbed.learn(7)
    stopped.learn(3)
    file = io.BytesIO()
    torch.save(stopped.optimizer.state_dict(), file)
    file.seek(0)
    resumed.optimizer.load_state_dict(torch.load(file, weights_only=True))
    for to, source in zip(resumed.parameters, stopped.parameters, strict=True):
        to.data.copy_(source.data)
    resumed.learn(4)
    if name.endswith("8bit"):
        states = resumed.optimizer.state
        assert all(states[p]["state1"].dtype == torch.uint8 for p in resumed.parameters)
    assert resumed.bits() == undisturbed.bits() != started
    assert all(parameter.isfinite().all() for parameter in resumed.parameters)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optimizer_args": {"warmup_step": 3}}, r"takes no warmup_step .*mean warmup_steps\?"),
        ({"optimizer_args": {"xyzzy": 3}}, "takes no xyzzy .* It takes: r, weight_lr_power"),
        ({"optimizer_args": {"lr": 3}}, "lr is set by the recipe's own keys"),
        ({"betas": (0.9, 0.99, 0.999)}, r"has 2 betas, and \[train\].betas holds 3"),
        ({"optimizer_args": {"eps": -1.0}}, "refuses its arguments"),
    ],
)  # fmt: skip
def test_arguments_that_it_does_not_take(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        new("schedulefreeadamw", **settings)


def test_betas_and_decay_only_where_there_are_any() -> None:
    assert new("adamw8bit").optimizer.param_groups[0]["weight_decay"] == 0.01
    assert new("lion").optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    assert new("lion", betas=(0.8, 0.9)).optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    with pytest.raises(RequestError, match=r"sgd has no betas. Take \[train\].betas out"):
        new("sgd", betas=(0.9, 0.99))
    with pytest.raises(RequestError, match="fromage has no weight_decay"):
        new("fromage", weight_decay=0.1)


def test_fused_and_foreach_by_choice_learn_alike() -> None:
    forms = [new("adamw", 1e-2, optimizer_args=args) for args in ({}, FUSED, FOREACH)]
    assert forms[1].optimizer.param_groups[0]["fused"] and forms[2].optimizer.defaults["foreach"]
    losses = [form.learn(5) for form in forms]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)


def test_a_dotted_path_is_any_class_of_an_optimizer() -> None:
    assert type(new("torch.optim.Adamax").optimizer).__name__ == "Adamax"
    with pytest.raises(RequestError, match="cannot be had: No module named 'nowhere'"):
        new("nowhere.Adam")
    with pytest.raises(RequestError, match="is no class of torch's Optimizer"):
        new("torch.nn.Linear")
    with pytest.raises(RequestError, match=r"ranger21 needs num_iterations"):
        Factors("ranger21", 1e-3)


@pytest.mark.parametrize("name", ["prodigy", "dadaptadam", "pytorch_optimizer.Prodigy"])
def test_one_that_finds_its_rate_has_one_for_all(name: str) -> None:
    parameters = {name: nn.Parameter(torch.ones(2, 2)) for name in ("unet.a", "text.b")}
    apart = by_rate(parameters, {"unet.a": 1.0, "text.b": 0.5}.__getitem__)
    with pytest.raises(RequestError, match=r"rates apart \(1, 0.5\)"):
        new_optimizer(Train(optimizer=name), apart)
    groups = new_optimizer(Train(optimizer="adamw"), apart).param_groups
    assert [group["lr"] for group in groups] == [1.0, 0.5]


def test_adafactor_takes_the_rate_of_the_recipe() -> None:
    """Its own defaults would not look at it."""
    slow, fast = new("adafactor", 1e-4), new("adafactor", 1e-2)
    assert fast.learn(10) < 0.9 * slow.learn(10)
    assert not any("exp_avg" in state for state in fast.optimizer.state.values())


def test_judging_a_schedule_free_one_changes_nothing_of_what_is_learned() -> None:
    looked, left = new("schedulefreeadamw", 1e-2), new("schedulefreeadamw", 1e-2)
    for _ in range(3):
        looked.learn(2)  # Judges at its end.
    for _ in range(6):
        left.optimizer.zero_grad()
        left.loss().backward()
        left.optimizer.step()
    assert looked.bits() == left.bits()
    with judged(looked.name, looked.optimizer):
        assert looked.bits() != left.bits()
    with judged("adamw", looked.optimizer):
        assert looked.bits() == left.bits()
