"""SIGKILL at ten random moments of a training of sixty steps, each form of it: the same bytes."""

import hashlib
import multiprocessing
import random
import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.progress import Silent
from pipeline.recipe import BuildRecipe
from pipeline.train.plan import RoundTraining, Start
from pipeline.train.product import LORA
from pipeline.train.round import train_round

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]

KILLS, STEPS = 10, 60

FORMS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "accumulation": {"train": {"accumulation": 3}},
    "ema": {"train": {"ema_decay": 0.95}},
    "text encoders": {"train": {"text_encoder_rate": 0.5, "ema_decay": 0.95}},
    "adamw8bit": {
        "train": {
            "optimizer": "adamw8bit",
            # Without it the states of such small factors would be of 32 bits.
            "optimizer_args": {"min_8bit_size": 1},
            "ema_decay": 0.95,
            "accumulation": 2,
        }
    },
    "schedule-free": {"train": {"optimizer": "schedulefreeadamw"}},
    "prodigy": {"train": {"optimizer": "prodigy"}},
    "dropouts": {
        "train": {"accumulation": 2},
        "lora": {"dropout": 0.2, "rank_dropout": 0.2, "module_dropout": 0.2},
    },
    "pissa": {"train": {"ema_decay": 0.95}, "lora": {"conv_rank": 2}, "start": {"policy": "pissa"}},
    "dora": {"train": {"ema_decay": 0.95}, "lora": {"conv_rank": 2, "dora": True}},
}


def lora_of(training: RoundTraining) -> str:
    return hashlib.sha256((training.folder / LORA).read_bytes()).hexdigest()


@pytest.mark.drill
@pytest.mark.parametrize("form", FORMS)
def test_killed_ten_times_it_ends_in_the_same_bytes(plan: TrainMaker, form: str) -> None:
    # A server that has torch forks each trainer, so that moments are of training, not of imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.train.round"])
    lora = FORMS[form].get("lora", {})
    train = {"save_every": 2, "trackers": (), **FORMS[form].get("train", {})}

    def start(name: str) -> tuple[Any, RoundTraining]:
        begun = {"start": Start(**FORMS[form].get("start", {}))}
        recipe, training = plan(name, steps=STEPS, train=train, lora=lora, training=begun)
        child = context.Process(target=train_round, args=(recipe, training, Silent()))
        child.start()
        return child, training

    child, calm = start("calm")
    child.join()
    child, calm = start("calm-again")  # Once more: the first also waited for the server's imports.
    began = time.monotonic()
    child.join()
    seconds = time.monotonic() - began
    assert child.exitcode == 0
    chance, kills = random.Random(form), 0
    while kills < KILLS:
        child, training = start("killed")
        child.join(chance.uniform(0, 0.3 * seconds))
        if child.exitcode is None:
            child.kill()
            child.join()
            kills += 1
        else:
            # It came to its end before all kills were spent; those that were count.
            assert child.exitcode == 0 and lora_of(training) == lora_of(calm)
            shutil.rmtree(training.folder)
    child, training = start("killed")
    child.join()
    assert child.exitcode == 0
    assert lora_of(training) == lora_of(calm)
    assert not list(training.folder.glob("*.pt*")) and not list(training.folder.glob(".*.part"))
