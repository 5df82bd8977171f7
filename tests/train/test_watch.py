"""What a person sees: the words beside the bar, TensorBoard's curves, and what stops a round."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.overrides import TorchFunctionMode

from pipeline.artefacts.files import read_json
from pipeline.errors import DiskFullError, RequestError, UrushiError
from pipeline.progress import Silent
from pipeline.recipe import BuildRecipe
from pipeline.recipe.train import Train
from pipeline.train.ahead import DEPTH, Ahead
from pipeline.train.losses import WINDOW, Losses
from pipeline.train.memory import enough_memory
from pipeline.train.plan import RoundTraining
from pipeline.train.product import LOSSES
from pipeline.train.round import train_round
from pipeline.train.run import Run
from pipeline.train.watch import Watch

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]


class PowerCut(BaseException):
    """Not an Exception: nothing may catch it."""


def test_curves_go_on_where_a_training_does(
    plan: TrainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, training = plan("seen", steps=6, train={"log_every": 1, "save_every": 3})
    advance, cut = Run.advance, [5]

    def advanced(run: Run) -> None:
        if run.step in cut:
            cut.clear()
            raise PowerCut
        advance(run)

    monkeypatch.setattr(Run, "advance", advanced)
    with pytest.raises(PowerCut):
        train_round(recipe, training, Silent())
    # TensorBoard reads files by their names: a second, then a counter as text ("10" before "9").
    started = int(time.time())
    while int(time.time()) == started:
        time.sleep(0.02)
    train_round(recipe, training, Silent())
    curves = EventAccumulator(str(training.folder / "curves")).Reload()
    losses = curves.Scalars("loss")
    assert [point.step for point in losses] == [1, 2, 3, 4, 5, 6]
    assert [point.value for point in losses] == pytest.approx(
        read_json(training.folder / LOSSES), abs=1e-5
    )
    assert {"learning_rate", "pictures_per_second", "peak_gib", "loss/mean"} <= set(
        curves.Tags()["scalars"]
    )


def test_curves_end_with_the_last_step(plan: TrainMaker) -> None:
    """Seven steps, looked at every three: the seventh is seen too."""
    recipe, training = plan("seen", steps=7, train={"log_every": 3})
    train_round(recipe, training, Silent())
    curves = EventAccumulator(str(training.folder / "curves")).Reload()
    assert [point.step for point in curves.Scalars("loss")] == [3, 6, 7]


def full(folder: Path) -> None:
    with suppress(OSError), open(folder / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("otherwise", [False, True])
def test_curves_on_a_full_disk_say_so_and_hide_nothing(
    plan: TrainMaker, small_disk: Callable[[int], Path], otherwise: bool
) -> None:
    """TensorBoard's own thread finds it out, and tells it to whoever comes next."""
    disk = small_disk(1000)
    training = replace(plan()[1], folder=disk)
    with (
        pytest.raises(ZeroDivisionError if otherwise else DiskFullError, match=r"disk|zero"),
        Watch(Accelerator(cpu=True), training, ("tensorboard",), 0) as watch,
    ):
        full(disk)
        for step in range(1, 50):
            with suppress(DiskFullError if otherwise else ZeroDivisionError):
                watch.see(step, 0.5, 0.5, 1e-3, step)
        if otherwise:
            raise ZeroDivisionError("by zero")


def test_the_pace_is_of_the_training_alone(plan: TrainMaker) -> None:
    """Ten pictures in two seconds; the eight beside it were for samples."""
    seconds = iter([0.0, 1.0, 9.0, 10.0])
    with Watch(Accelerator(cpu=True), plan()[1], (), 0, lambda: next(seconds)) as watch:
        with watch.aside():
            pass
        assert "5 pictures/s" in watch.see(1, 0.5, 0.5, 1e-3, 10)


def test_losses_are_looked_at_together() -> None:
    losses = Losses((), 5.0, lambda: "Lower the rate.")
    for value in (0.5, 0.25):
        losses.add(torch.tensor(value))
    assert losses.values == []
    losses.gather()
    assert losses.values == [0.5, 0.25] and losses.mean == 0.375


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_names_its_step(bad: float) -> None:
    losses = Losses((0.5,), 5.0, lambda: "Lower the rate.")
    for value in (0.25, bad, 0.5):
        losses.add(torch.tensor(value))
    with pytest.raises(UrushiError, match=r"at step 3\. Lower the rate"):
        losses.gather()


def test_losses_that_grow_stop_and_such_that_waver_do_not() -> None:
    wavering = Losses((), 5.0, lambda: "Lower the rate.")
    for step in range(4 * WINDOW):
        wavering.add(torch.tensor(0.1 + 0.3 * (step % 2)))
    wavering.gather()
    growing = Losses([0.1] * WINDOW, 5.0, lambda: "Lower the rate.")
    for _ in range(WINDOW):
        growing.add(torch.tensor(0.6))
    with pytest.raises(UrushiError, match=r"grows: 0\.6000.*0\.1000 over the first\. Lower"):
        growing.gather()


def test_too_little_memory_names_the_switches_that_are_left() -> None:
    """A million gigabytes, which torch really asks the system for."""
    train = Train(batch_size=4, accumulation=2, optimizer="adamw")
    with (
        pytest.raises(UrushiError, match="There is not enough memory for round 2") as caught,
        enough_memory(train, "for round 2"),
    ):
        torch.empty(2**58)
    said = str(caught.value)
    assert "gradient_checkpointing = true" in said and 'optimizer = "adamw8bit"' in said
    assert "batch_size = 2 with accumulation = 4" in said
    assert 'storage = "fp8"' in said
    spared = Train(gradient_checkpointing=True, storage="nf4")
    with (
        pytest.raises(UrushiError, match=r"Try, in \[train\]: or a smaller \[lora\]\.rank"),
        enough_memory(spared, "here"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    for refusal in (MemoryError(), RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")):
        with pytest.raises(UrushiError, match="not enough memory"), enough_memory(spared, "here"):
            raise refusal
    with pytest.raises(RuntimeError, match="another"), enough_memory(spared, "here"):
        raise RuntimeError("another thing")


def test_batches_are_made_ahead_in_order_and_errors_reach_whoever_asks() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return 10 // number

    ahead = Ahead(make, iter([5, 2, 1, 0, 3]))
    assert [ahead.next() for _ in range(3)] == [2, 5, 10]
    with pytest.raises(ZeroDivisionError):
        ahead.next()
    assert ahead.next() == 3 and made == [5, 2, 1, 0, 3]
    with pytest.raises(StopIteration):
        ahead.next()


def test_no_more_is_made_than_will_be_asked_for_soon() -> None:
    asked: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            asked.append(number)
            yield number

    ahead: Ahead[Any] = Ahead(lambda number: number, numbers())
    assert ahead.next() == 0
    assert len(asked) == DEPTH + 1


class Reads(TorchFunctionMode):
    """Where something is asked that makes a processor wait for its GPU: numbers off the device, or
    sizes that hang on values. Optimizers count their steps in tensors that lie on the CPU."""

    WAIT = (
        "item",
        "tolist",
        "cpu",
        "numpy",
        "nonzero",
        "__bool__",
        "__float__",
        "__int__",
        "equal",
    )

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in self.WAIT:
            stack = traceback.extract_stack()[:-1]
            if not any("optim" in Path(frame.filename).parts for frame in stack):
                self.found.append(f"{func.__name__} in {stack[-1].filename}:{stack[-1].lineno}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "form",
    [
        {"train": {"ema_decay": 0.9, "accumulation": 2, "loss": "huber", "text_encoder_rate": 0.5}},
        {"lora": {"conv_rank": 2, "max_norm": 0.01, "rank_dropout": 0.1, "module_dropout": 0.1}},
        {"train": {"optimizer": "schedulefreeadamw"}, "lora": {"dora": True, "dropout": 0.1}},
    ],
    ids=("ema-text", "dropouts", "dora"),
)
def test_no_number_is_read_inside_a_step(plan: TrainMaker, form: dict[str, Any]) -> None:
    run = Run(*plan("unseen", **form))
    run.advance()  # What is set up once may look.
    reads = Reads()
    with reads:
        run.advance()
        assert reads.found == []
        run.look()
    assert reads.found


def test_channels_last_learns_the_same(plan: TrainMaker) -> None:
    losses = []
    run = Run(*plan("laid", train={"channels_last": True}, lora={"conv_rank": 4}))
    last = torch.channels_last
    assert run.network.unet.conv_in.weight.is_contiguous(memory_format=last)
    for name, asked in (("plain", False), ("last", True)):
        recipe, training = plan(
            name, steps=3, train={"channels_last": asked}, lora={"conv_rank": 4}
        )
        train_round(recipe, training, Silent())
        losses.append(read_json(training.folder / LOSSES))
    assert losses[1] == pytest.approx(losses[0], abs=2e-6)


def test_compiling_is_refused_without_a_gpu(plan: TrainMaker) -> None:
    with pytest.raises(RequestError, match=r"\[train\]\.compile needs a GPU"):
        Run(*plan(train={"compile": True}))
