"""Two processes that share each step's batches (gloo): the same losses and the same LoRA as one."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from pipeline.artefacts.files import read_json
from pipeline.errors import RequestError, UrushiError
from pipeline.progress import Silent, SilentBar
from pipeline.recipe import BuildRecipe
from pipeline.recipe.base import Base
from pipeline.train.loop import train_here
from pipeline.train.plan import RoundTraining, Start
from pipeline.train.product import LORA, LOSSES
from pipeline.train.resume import load_state
from pipeline.train.round import train_round
from pipeline.train.stopping import Stopping

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]
Job = tuple[BuildRecipe, RoundTraining]

LEARNING = {"accumulation": 2, "log_every": 1, "warmup": 0.0, "trackers": ()}
LEARNING |= {"text_encoder_rate": 0.5}
NINE = {"pictures": tuple(f"{n:032x}" for n in range(9)), "epochs": 1, "steps": None}
"""Five batches, two to a step: the last step has none for the second device."""

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "many batches": {"train": {"accumulation": 4}},
    "checkpointing": {"train": {"gradient_checkpointing": True, "ema_decay": 0.9}},
    "dropouts": {"lora": {"dropout": 0.2, "rank_dropout": 0.2, "module_dropout": 0.5}},
    "max norm": {"lora": {"conv_rank": 2, "max_norm": 0.01}},
    "prodigy": {"train": {"optimizer": "prodigy", "text_encoder_rate": 1.0}, "learning_rate": 1.0},
    "fp8": {"train": {"storage": "fp8"}},
    "int8": {"train": {"storage": "int8"}},
    "nf4": {"train": {"storage": "nf4", "optimizer": "adamw8bit"}},
    "gradient": {"training": {"start": Start("gradient")}},
    "pissa": {"training": {"start": Start("pissa")}},
}


def one_of_two(job: Job, place: int, port: int) -> None:
    """What accelerate's launcher starts, without its imports."""
    names = {"RANK": place, "LOCAL_RANK": place, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    os.environ["WANDB_MODE"] = "offline"
    torch.set_num_threads(1)
    PartialState(cpu=True)
    with Stopping(job[1].stop) as stopping:
        train_here(*job, Silent(), stopping)


def on_two(job: Job) -> None:
    """Trains in two processes, forked from one that has torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.train.round"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [context.Process(target=one_of_two, args=(job, place, port)) for place in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join(120)
        each.kill()
    assert [each.exitcode for each in both] == [0, 0]


def apart(one: Job, two: Job) -> tuple[float, float]:
    """How far their losses are apart at most; and their LoRAs, by norm, of the farthest tensor."""
    losses = [read_json(training.folder / LOSSES) for _, training in (one, two)]
    first, second = (load_file(training.folder / LORA) for _, training in (one, two))
    assert first.keys() == second.keys()
    ways = [float((second[k] - first[k]).norm() / first[k].norm().clamp(min=1e-9)) for k in first]
    return max(abs(a - b) for a, b in zip(*losses, strict=True)), max(ways)


@pytest.fixture
def job(plan: TrainMaker, sdxl: Base) -> Callable[..., Job]:
    """job("again", family="sdxl", train={...}, …) -> a round in which text encoders learn."""

    def make(name: str, family: str = "sd15", **asked: Any) -> Job:
        train = {**LEARNING, **asked.pop("train", {})}
        training = {**NINE, **asked.pop("training", {})}
        recipe, planned = plan(name, train=train, training=training, **asked)
        return recipe.model_copy(update={"base": sdxl} if family == "sdxl" else {}), planned

    return make


def test_two_devices_see_the_same_steps_as_one(job: Callable[..., Job]) -> None:
    """Through accelerate's launcher, with a UNet and a text encoder that learn."""
    one, two = job("one"), job("two", train={"devices": 2})
    train_round(*one, Silent())
    receipt = train_round(*two, Silent())
    assert receipt.summary["steps"] == 3
    assert one[1].fingerprint == two[1].fingerprint
    losses, loras = apart(one, two)
    assert losses <= 1e-5 and loras <= 1e-3


@pytest.mark.drill
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_however_a_round_trains_two_devices_are_as_one(
    job: Callable[..., Job], family: str, form: str
) -> None:
    one, two = (job(name, family, **FORMS[form]) for name in ("one", "two"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # As each of the two has: it moves a sum's last bit.
    try:
        train_round(*one, Silent())
    finally:
        torch.set_num_threads(before)
    on_two(two)
    assert any(key.startswith("lora_te") for key in load_file(two[1].folder / LORA))
    losses, loras = apart(one, two)
    assert losses <= 1e-5 and loras <= 1e-3


@pytest.mark.drill
def test_a_file_of_accelerates_says_how_many(job: Callable[..., Job], tmp_path: Path) -> None:
    config = tmp_path / "two.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\n"
        "num_machines: 1\nnum_processes: 2\nmachine_rank: 0\nmain_process_port: 0\n"
        "mixed_precision: 'no'\n"
    )
    one, two = job("one"), job("two", train={"accelerate_config": config})
    train_round(*one, Silent())
    train_round(*two, Silent())
    losses, loras = apart(one, two)
    assert losses <= 1e-5 and loras <= 1e-3


@pytest.mark.drill
def test_one_of_two_devices_keeps_curves(job: Callable[..., Job]) -> None:
    pytest.importorskip("wandb")
    two = job("two", train={"trackers": ("tensorboard", "wandb")})
    on_two(two)
    for kept in ("curves/events.*", "wandb/offline-run-*"):
        assert len(list(two[1].folder.glob(kept))) == 1, kept


class Told(Silent):
    """Remembers bars; after `count` notes beside them, kills the trainer at `place`."""

    def __init__(self, place: int = 0, count: int = 0) -> None:
        self.bars: list[tuple[str, int, int]] = []
        self.place, self.count = place, count

    def bar(self, what: str, total: int, unit: str, done: int = 0) -> "ToldBar":
        self.bars.append((what, total, done))
        return ToldBar(self)


class ToldBar(SilentBar):
    def __init__(self, told: Told) -> None:
        self._told = told

    def note(self, text: str) -> None:
        self._told.count -= 1
        if self._told.count == 0:
            (victim,) = (child for child in trainers() if child[0] == str(self._told.place))
            victim[1].kill()


def trainers() -> list[tuple[str, psutil.Process]]:
    """Those that run, with their places among the devices."""
    children = psutil.Process().children(recursive=True)
    placed = ((child.environ().get("LOCAL_RANK"), child) for child in children)
    return [(place, child) for place, child in placed if place is not None]


@pytest.mark.drill
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_killed_one_of_two_it_goes_on_from_the_last_resume_point(
    job: Callable[..., Job], family: str, place: int
) -> None:
    asked = {"training": {"epochs": 9}}
    one = job("one", family, **asked)
    two = job("two", family, train={"devices": 2, "save_every": 3}, **asked)
    train_round(*one, Silent())
    with pytest.raises(UrushiError, match=r"ended with code 1\. Its resume point stands"):
        train_round(*two, Told(place, count=8))
    assert not trainers()
    state = load_state(two[1].folder, Silent().say)
    assert state is not None and 6 <= state.step < 23 and state.step % 3 == 0
    told = Told()
    train_round(*two, told)
    assert told.bars == [("train 1", 23, state.step)]
    losses, loras = apart(one, two)
    assert losses <= 1e-5 and loras <= 1e-3


@pytest.mark.drill
def test_devices_that_cannot_share_a_step_are_refused(job: Callable[..., Job]) -> None:
    with pytest.raises(RequestError, match="accumulation is 3, which 2 devices"):
        train_round(*job("uneven", train={"accumulation": 3, "devices": 2}), Silent())
