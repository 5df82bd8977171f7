"""Resume points: kept, whole, refused under other settings, and the same bytes in the end."""

import hashlib
import os
import pickle
import re
import resource
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.artefacts import files
from pipeline.artefacts.locks import held
from pipeline.artefacts.receipts import read_receipt
from pipeline.errors import BusyError, DiskFullError, Interrupted, RequestError, UrushiError
from pipeline.progress import Silent
from pipeline.recipe import BuildRecipe
from pipeline.train.plan import RoundTraining
from pipeline.train.product import LORA
from pipeline.train.resume import differences, load_state, save_state
from pipeline.train.round import train_round
from pipeline.train.run import Run
from pipeline.train.schedule import factor

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]


def lora_of(training: RoundTraining) -> str:
    return hashlib.sha256((training.folder / LORA).read_bytes()).hexdigest()


def before_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[Run], Any]) -> None:
    """Has `act` done once, just before that step is taken."""
    advance, done = Run.advance, []

    def advanced(run: Run) -> None:
        if run.step == step and not done:
            done.append(step)
            act(run)
        advance(run)

    monkeypatch.setattr(Run, "advance", advanced)


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


def cut(run: Run) -> None:
    raise PowerCut


FORM_NAMES = (
    *("cosine", "accumulation-ema", "text", "adamw8bit-ema"),
    *("block-rates", "dropouts-max-norm", "dora"),
    *("schedulefree-restarts", "prodigy-polynomial"),
)
FORMS: tuple[dict[str, Any], ...] = (
    {"scheduler": "cosine", "warmup": 0.2},
    {"accumulation": 3, "ema_decay": 0.9},
    {"text_encoder_rate": 0.5, "accumulation": 2},
    # Without it the states of such small factors would be of 32 bits.
    {"optimizer": "adamw8bit", "optimizer_args": {"min_8bit_size": 1}, "ema_decay": 0.9},
    {"lora": {"blocks": "IN01 = 0.25, OUT03 = 0.5, rest = 1", "block_ranks": "M00 = 2"}},
    {"lora": {"dropout": 0.2, "rank_dropout": 0.3, "module_dropout": 0.2, "max_norm": 0.02}},
    {"lora": {"dora": True, "dropout": 0.1, "rslora": True, "alpha": 4.0, "conv_rank": 2}},
    {"optimizer": "schedulefreeadamw", "scheduler": "cosine_with_restarts", "cycles": 2},
    {"optimizer": "prodigy", "scheduler": "polynomial", "power": 2.0, "accumulation": 2},
)


@pytest.mark.parametrize("form", FORMS, ids=FORM_NAMES)
def test_cut_off_and_resumed_it_ends_in_the_same_bytes(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch, form: dict[str, Any]
) -> None:
    lora = form.get("lora", {})
    train = {"save_every": 3, **{key: value for key, value in form.items() if key != "lora"}}
    calm = plan("calm", train=train, lora=lora)
    train_round(*calm, Silent())
    recipe, training = plan("cut", train=train, lora=lora)
    before_step(monkeypatch, 5, cut)
    with pytest.raises(PowerCut):
        train_round(recipe, training, Silent())
    assert [p.name for p in training.folder.glob("state-*")] == ["state-00000003.pt"]
    receipt = train_round(recipe, training, Silent())
    assert receipt.summary["steps"] == 8
    if "max_norm" in lora:
        told = receipt.summary["max_norm"]
        assert told == read_receipt(calm[1].folder).summary["max_norm"]  # type: ignore[union-attr]
        assert 0 < told["steps"] <= 8 and len(told["most"]) == 3
    assert lora_of(training) == lora_of(calm[1])
    assert (training.folder / "losses.json").read_bytes() == (
        calm[1].folder / "losses.json"
    ).read_bytes()
    assert not list(training.folder.glob("state-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_leaves(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    recipe, training = plan("heard")
    before_step(monkeypatch, 2, lambda run: os.kill(os.getpid(), number))
    listener = signal.getsignal(number)
    # Ctrl-C goes on to Python's own listener; nobody else listens to SIGTERM.
    expected = KeyboardInterrupt if number == signal.SIGINT else Interrupted
    with pytest.raises(expected):
        train_round(recipe, training, Silent())
    assert signal.getsignal(number) is listener
    state = load_state(training.folder, Silent().say)
    assert state is not None and state.step == 3 and len(state.losses) == 3


def test_the_stop_file_is_obeyed_and_removed(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, training = plan("stopped")
    before_step(monkeypatch, 1, lambda run: training.stop.touch())
    with pytest.raises(Interrupted, match=r"after step 2 of 8.*[Rr]un the same command") as caught:
        train_round(recipe, training, Silent())
    assert caught.value.exit_code == 130
    assert not training.stop.exists()
    calm = plan("calm")
    train_round(recipe, training, Silent())
    train_round(*calm, Silent())
    assert lora_of(training) == lora_of(calm[1])


def half_trained(plan: TrainMaker, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    recipe, training = plan(name)
    before_step(monkeypatch, 4, lambda run: training.stop.touch())
    with pytest.raises(Interrupted):
        train_round(recipe, training, Silent())


def test_other_settings_are_refused_by_name(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_trained(plan, monkeypatch, "half")
    changed = {"batch_size": 3, "save_every": 1, "log_every": 1}
    recipe, training = plan("half", train=changed, learning_rate=5e-4)
    with pytest.raises(RequestError, match="--force") as caught:
        train_round(recipe, training, Silent())
    said = str(caught.value)
    assert "learning_rate 0.001 -> 0.0005; train.batch_size 2 -> 3" in said
    assert "save_every" not in said and "log_every" not in said
    assert load_state(training.folder, Silent().say) is not None


def test_forced_it_goes_on_and_the_receipt_says_so(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_trained(plan, monkeypatch, "half")
    recipe, training = plan("half", learning_rate=5e-4, training={"force": True})
    rates, advance = [], Run.advance

    def noted(run: Run) -> None:
        rates.append((run.step, run.learner.optimizer.param_groups[0]["lr"]))
        advance(run)

    monkeypatch.setattr(Run, "advance", noted)
    train_round(*plan("whole", learning_rate=5e-4), Silent())
    undisturbed = rates[5:]
    rates.clear()
    receipt = train_round(recipe, training, Silent())
    assert [step for step, _ in rates] == [5, 6, 7] and rates == undisturbed
    assert receipt.summary["forced"] == ["from step 5: learning_rate 0.001 -> 0.0005"]


def test_forced_to_another_optimizer_its_moments_are_new(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_trained(plan, monkeypatch, "half")
    recipe, training = plan("half", train={"optimizer": "lion"}, training={"force": True})
    run = Run(recipe, training)
    run.resume(Silent().say)
    assert run.step == 5 and not run.learner.optimizer.state
    assert run.learner.rate == Run(*plan("half")).learner._schedule.base_lrs[0] * factor(
        recipe.train, 5, 0, 8
    )
    receipt = train_round(recipe, training, Silent())
    assert receipt.summary["forced"] == ["from step 5: train.optimizer adamw -> lion"]


def test_forced_to_other_block_rates_moments_stay_with_their_factors(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_trained(plan, monkeypatch, "half")
    apart = {"blocks": "OUT02 = 0.5, OUT03 = 0.5, rest = 1"}
    recipe, training = plan("half", lora=apart, training={"force": True})
    state = load_state(training.folder, Silent().say)
    assert state is not None
    run = Run(recipe, training)
    run.resume(Silent().say)
    assert len(run.learner.optimizer.param_groups) == 2 and run.learner.order != state.order
    for number, name in enumerate(state.order):
        kept = run.learner.optimizer.state[run.parameters[name]]["exp_avg"]
        assert kept.equal(state.optimizer["state"][number]["exp_avg"])


def test_a_moving_average_that_is_forced_begins_at_the_resumed_factors(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_trained(plan, monkeypatch, "half")
    run = Run(*plan("half", train={"ema_decay": 0.9}, training={"force": True}))
    run.resume(Silent().say)
    state = load_state(run.training.folder, Silent().say)
    assert state is not None
    with run.learner.judged():
        for name, value in run.parameters.items():
            assert value.equal(state.parameters[name])


def test_rounds_of_other_precisions_follow_one_another_in_one_process(plan: TrainMaker) -> None:
    for precision in ("float32", "bf16", "float32"):
        asked = plan(precision, steps=1, train={"precision": precision, "process": "shared"})
        run = Run(*asked)
        assert run.accelerator.mixed_precision == {"float32": "no"}.get(precision, precision)


def test_a_lora_of_another_rank_cannot_be_forced(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_trained(plan, monkeypatch, "half")
    recipe, training = plan("half", lora={"rank": 2}, training={"force": True})
    with pytest.raises(RequestError, match="other layers or ranks"):
        train_round(recipe, training, Silent())


@pytest.mark.parametrize(("before", "after"), [("carried", "fresh"), ("fresh", "carried")])
def test_what_was_carried_over_cannot_be_forced_away(
    plan: TrainMaker, before: str, after: str
) -> None:
    recipe, training = plan("half")
    run = Run(recipe, replace(training, settings={**training.settings, "start": before}))
    run.advance()
    run.save()
    settings = {**training.settings, "start": after}
    forced = replace(training, settings=settings, fingerprint="other", force=True)
    with pytest.raises(RequestError, match="or of another start, which cannot be gone on with"):
        train_round(recipe, forced, Silent())


def zeroed(path: Path) -> None:
    """A block of the weights, as a disk loses one: torch alone would not notice."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 512] = bytes(512)
    path.write_bytes(content)


def shortened(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def of_another_kind(path: Path) -> None:
    path.write_bytes(pickle.dumps({"step": 6}))


@pytest.mark.parametrize("damage", [zeroed, shortened, of_another_kind])
def test_the_last_points_are_kept_and_a_damaged_one_is_passed_over(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    recipe, training = plan("kept", train={"save_every": 2, "save_last": 2})
    before_step(monkeypatch, 7, cut)
    with pytest.raises(PowerCut):
        train_round(recipe, training, Silent())
    names = sorted(p.name for p in training.folder.glob("state-*"))
    assert names == ["state-00000004.pt", "state-00000006.pt"]
    said: list[str] = []
    damage(training.folder / names[1])
    state = load_state(training.folder, said.append)
    assert state is not None and state.step == 4
    assert len(said) == 1 and f"{names[1]} is damaged (" in said[0]
    # What is saved then outlives it, however few are kept.
    again = shutil.copytree(training.folder, training.folder.with_name("again"))
    save_state(again, replace(state, step=5), keep=1)
    assert [p.name for p in again.glob("state-*")] == ["state-00000005.pt"]
    damage(training.folder / names[0])
    with pytest.raises(UrushiError, match=r"No resume point in .*kept is whole\. Delete state-"):
        train_round(recipe, training, Silent())
    for name in names:
        (training.folder / name).unlink()
    assert train_round(recipe, training, Silent()).summary["steps"] == 8


def test_loras_on_the_way_are_those_of_trainings_that_end_there(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the constant rate: so many steps of a longer training. A cut repeats them."""
    asked = {"lora_every": 2, "save_every": 3, "scheduler": "constant", "ema_decay": 0.5}
    recipe, training = plan("long", steps=6, train=asked)
    training.folder.mkdir()
    (training.folder / "step-000003.safetensors").write_bytes(b"of an earlier training")
    before_step(monkeypatch, 5, cut)
    with pytest.raises(PowerCut):
        train_round(recipe, training, Silent())
    train_round(recipe, training, Silent())
    kept = sorted(training.folder.glob("step-*"))
    assert [path.name for path in kept] == ["step-000002.safetensors", "step-000004.safetensors"]
    short = plan("short", steps=4, train=asked)[1]
    train_round(recipe, replace(short, folder=training.folder.with_name("short")), Silent())
    assert kept[1].read_bytes() == (training.folder.with_name("short") / LORA).read_bytes()


def test_minutes_save_too(plan: TrainMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    hurried = {"save_every": 100, "save_minutes": 1e-6, "log_every": 2}
    recipe, training = plan("minutes", train=hurried)
    before_step(monkeypatch, 5, cut)
    with pytest.raises(PowerCut):
        train_round(recipe, training, Silent())
    state = load_state(training.folder, Silent().say)
    assert state is not None and state.step == 4


def test_a_full_disk_leaves_the_point_before(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full refuses every write with ENOSPC, as a full disk does."""
    recipe, training = plan("full", train={"save_every": 3})
    part = training.folder / f".state-00000006.pt.{os.getpid()}{files.TEMPORARY}"
    before_step(monkeypatch, 5, lambda run: part.symlink_to("/dev/full"))
    with pytest.raises(DiskFullError, match="state-00000006") as caught:
        train_round(recipe, training, Silent())
    assert caught.value.exit_code == 3
    state = load_state(training.folder, Silent().say)
    assert state is not None and state.step == 3
    train_round(recipe, training, Silent())
    calm = plan("calm", train={"save_every": 3})
    train_round(*calm, Silent())
    assert lora_of(training) == lora_of(calm[1])


def test_a_save_that_ends_half_way_leaves_the_point_before(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system lets the file grow to half of its size, and refuses the rest."""
    recipe, training = plan("half", train={"save_every": 3, "trackers": ()})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def bound(run: Run) -> None:
        size = (training.folder / "state-00000003.pt").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))

    before_step(monkeypatch, 5, bound)
    try:
        with pytest.raises(DiskFullError, match=r"state-00000006.pt grows larger.*--workspace"):
            train_round(recipe, training, Silent())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in training.folder.glob("*state-*")] == ["state-00000003.pt"]
    assert not list(training.folder.glob(".*" + files.TEMPORARY))
    train_round(recipe, training, Silent())
    calm = plan("calm", train={"save_every": 3})
    train_round(*calm, Silent())
    assert lora_of(training) == lora_of(calm[1])


def test_a_disk_that_fills_up_leaves_the_point_before(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch, small_disk: Callable[[int], Path]
) -> None:
    """A real one, and curves are written to it as well."""
    disk = small_disk(32_000)
    asked = {"save_every": 3, "log_every": 1}
    recipe, training = plan(train=asked, training={"folder": disk / "train"})

    def fill(run: Run) -> None:
        with suppress(OSError), open(disk / "filler", "wb") as filler:
            while True:
                filler.write(bytes(4096))
                filler.flush()

    before_step(monkeypatch, 4, fill)
    with pytest.raises(DiskFullError, match="state-00000006") as caught:
        train_round(recipe, training, Silent())
    assert caught.value.exit_code == 3
    assert [path.name for path in training.folder.glob("*state-*")] == ["state-00000003.pt"]
    (disk / "filler").unlink()
    train_round(recipe, training, Silent())
    calm = plan("calm", train=asked)
    train_round(*calm, Silent())
    assert lora_of(training) == lora_of(calm[1])


def test_a_full_disk_under_the_lora_leaves_the_points(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, training = plan("late", train={"save_every": 3})
    part = training.folder / f".{LORA}.{os.getpid()}{files.TEMPORARY}"
    before_step(monkeypatch, 7, lambda run: part.symlink_to("/dev/full"))
    with pytest.raises(DiskFullError, match=LORA):
        train_round(recipe, training, Silent())
    assert not (training.folder / LORA).exists()
    state = load_state(training.folder, Silent().say)
    assert state is not None and state.step == 6
    assert train_round(recipe, training, Silent()).summary["steps"] == 8


def test_a_place_that_forbids_writing_is_told(plan: TrainMaker) -> None:
    """/sys refuses new files to everyone, root too."""
    recipe, training = plan(training={"folder": Path("/sys/urushi/train")})
    with pytest.raises(RequestError, match=r"cannot be written.*--workspace"):
        train_round(recipe, training, Silent())


def test_two_trainers_never_share_a_folder(plan: TrainMaker) -> None:
    recipe, training = plan("shared")
    with held(training.folder / ".lock"), pytest.raises(BusyError):
        train_round(recipe, training, Silent())


def test_a_loss_that_is_not_finite_overwrites_nothing(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, training = plan("nan", train={"save_every": 2, "log_every": 4})

    def poison(run: Run) -> None:
        next(iter(run.parameters.values())).data.fill_(float("nan"))

    before_step(monkeypatch, 2, poison)
    with pytest.raises(UrushiError, match=r"The loss is nan at step 3.*learning_rate") as caught:
        train_round(recipe, training, Silent())
    assert caught.value.exit_code == 1
    state = load_state(training.folder, Silent().say)
    assert state is not None and state.step == 2
    assert all(bool(value.isfinite().all()) for value in state.parameters.values())
    assert "its last resume point stands" in str(caught.value) and "--force" in str(caught.value)


def test_a_loss_that_goes_wrong_at_once_has_nothing_to_force(
    plan: TrainMaker,
) -> None:
    recipe, training = plan("early", learning_rate=float("inf"), train={"warmup": 0.0})
    with pytest.raises(UrushiError, match=r"nothing is saved yet\. .* run the same command again"):
        train_round(recipe, training, Silent())


def test_too_little_memory_for_a_step_is_told_and_the_point_before_stands(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million gigabytes, which torch really asks the system for."""
    recipe, training = plan("large", train={"save_every": 2})
    before_step(monkeypatch, 3, lambda run: torch.empty(2**58))
    with pytest.raises(UrushiError, match=r"not enough memory for round 1 .*batch_size = 1 with"):
        train_round(recipe, training, Silent())
    state = load_state(training.folder, Silent().say)
    assert state is not None and state.step == 2


def test_differences_name_keys_and_spare_digests() -> None:
    before = {"lora": {"rank": 8, "alpha": None}, "texts": "a" * 64, "steps": 5}
    after = {"lora": {"rank": 16, "alpha": None}, "texts": "b" * 64, "steps": 5}
    assert differences(before, after) == ("lora.rank 8 -> 16", "texts changed")
    assert differences(before, before) == ()
    assert re.match("steps 5 -> None", differences(before, {**before, "steps": None})[0])


def test_the_rate_falls_by_steps_however_many_batches_they_are(plan: TrainMaker) -> None:
    train = {"accumulation": 3, "warmup_steps": 2, "scheduler": "cosine_with_restarts", "cycles": 2}
    recipe, training = plan("rates", train=train, training={"epochs": 4, "steps": None})
    run, rates = Run(recipe, training), []
    assert run.steps == 8, "four epochs of six batches each, three to a step"
    while run.step < run.steps:
        rates.append(run.learner.rate)
        run.advance()
    wanted = [1e-3 * factor(recipe.train, step, 2, 8) for step in range(8)]
    assert rates == pytest.approx(wanted) and rates[:3] == pytest.approx([0, 5e-4, 1e-3])
    assert rates[4] < rates[3] and rates[5] == pytest.approx(1e-3), "the second cycle"


def test_accumulated_batches_weigh_every_sample_alike(plan: TrainMaker) -> None:
    """A step of whole and short batches has the gradient of all its samples' mean loss."""
    recipe, training = plan("parts", train={"accumulation": 3, "max_grad_norm": 1e9})
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"warmup": 0})})
    training = replace(training, epochs=1, steps=None)
    whole = Run(recipe, training)
    # Ten pictures in two buckets of five: six batches an epoch, two steps.
    assert whole.steps == 2
    inputs = [whole.feed.at(batch) for batch in range(3)]
    assert {len(each.timesteps) for each in inputs} == {1, 2}
    losses = torch.cat([whole.sample_losses(each) for each in inputs])
    wanted = torch.autograd.grad(losses.mean(), list(whole.parameters.values()))
    seen: list[torch.Tensor] = []

    def catch(optimizer: Any, *_: Any) -> None:
        seen.extend(p.grad.clone() for p in whole.parameters.values() if p.grad is not None)

    whole.learner.optimizer.optimizer.register_step_pre_hook(catch)
    whole.advance()
    for got, gradient in zip(seen, wanted, strict=True):
        torch.testing.assert_close(got, gradient, rtol=1e-4, atol=1e-7)
    whole.look()
    assert whole.losses.values[0] == pytest.approx(float(losses.detach().mean()), rel=1e-5)
