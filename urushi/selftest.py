"""`urushi selftest`: checks on this machine what was only ever checked on CPUs; see docs/gpu.md.

Draws a few pictures, runs the data stages on the shipped tiny base or on one of yours, and trains
short rounds: precisions beside float32, a training cut in two beside a whole one, a child process
beside this one, two devices beside one, and seconds and memory with each switch.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import Interrupted, RequestError, UrushiError
from pipeline.progress import Bar, Silent, SilentBar
from urushi.recipes import tiny_base
from urushi.table import table

if TYPE_CHECKING:
    from pipeline.recipe import BuildRecipe
    from pipeline.train.plan import RoundTraining

PICTURES, STEPS = 16, 8
CLOSE = 1e-2
"""How far, relative, a loss in half precision may be from float32's."""
ALIKE = 1e-3
"""The same for a loss after a resume on a GPU, whose sums are not always in one order."""


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is as it should be (None: only told), and the figures."""

    name: str
    good: bool | None
    said: str


@dataclass(frozen=True)
class Bench:
    """A round that is ready to be trained, any number of times, under a folder."""

    recipe: "BuildRecipe"
    training: "RoundTraining"
    folder: Path

    def asked(self, name: str, **train: Any) -> tuple["BuildRecipe", "RoundTraining"]:
        """The round in a folder of its own, with these keys of [train] changed."""
        changed = self.recipe.train.model_copy(update=train)
        recipe = self.recipe.model_copy(update={"train": changed})
        return recipe, replace(self.training, folder=self.folder / name)


def run_selftest(device: str, base: Path | None) -> None:
    """Prints a table of checks.

    Raises:
        RequestError: there is no GPU to test.
        UrushiError: a check failed.
    """
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Before torch looks.
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError(
            "torch finds no GPU. Install a build of torch for your card's driver, or use "
            "--device cpu."
        )
    checks = [Check("device", None, _device())]
    with tempfile.TemporaryDirectory(prefix="urushi-selftest-") as folder:
        print("Drawing pictures and caching them …", flush=True)
        bench = _bench(Path(folder), base)
        for check in CHECKS:
            print(f"{check.__name__.strip('_').replace('_', ' ')} …", flush=True)
            checks += check(bench)
    marks = {True: "ok", False: "FAILED", None: "-"}
    print(table(("check", "", "figures"), [(c.name, marks[c.good], c.said) for c in checks]))
    failed = [check.name for check in checks if check.good is False]
    if failed:
        raise UrushiError(
            f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}. docs/gpu.md says "
            "what each of them means."
        )


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"
    card = torch.cuda.get_device_properties(0)
    return (
        f"{torch.cuda.device_count()} x {card.name}, {card.total_memory / 2**30:.1f} GiB, "
        f"torch {torch.__version__}"
    )


RECIPE = """
name = "selftest"
[base]
checkpoint = "{checkpoint}"
{config}
[dataset]
recipe = "pictures.toml"
[resize]
resolution = {side}
step = {step}
min_side = {least}
max_side = {most}
[lora]
rank = 8
conv_rank = 8
[train]
batch_size = 2
optimizer = "adamw"
precision = "float32"
process = "shared"
save_every = 1000
log_every = 1
trackers = []
[rounds]
count = 1
steps = [{steps}]
held_out = 0.3
"""


def _bench(root: Path, base: Path | None) -> Bench:
    import numpy as np

    from demo.drawings import draw, lacquer_scene
    from pipeline.artefacts.job import load_job
    from pipeline.rounds.training import training
    from pipeline.stages import DATA_STAGES

    side = 64 if base is None else 512
    draws = np.random.default_rng(1)
    (root / "pictures").mkdir()
    for number in range(PICTURES):
        scene = lacquer_scene(draws)
        draw(scene, side, side).save(root / "pictures" / f"{number:02d}.png")
        words = ", ".join(scene.general_tags())
        (root / "pictures" / f"{number:02d}.txt").write_text(words, encoding="utf-8")
    (root / "pictures.toml").write_text('name = "pictures"\n[folder]\npath = "pictures"\n')
    text = RECIPE.format(
        checkpoint=(base or tiny_base() / "tiny.safetensors").resolve(),
        config="" if base is not None else f'config = "{tiny_base() / "config"}"',
        side=side,
        step=64 if base is not None else 16,
        least=side,
        most=side,
        steps=STEPS,
    )
    (root / "recipe.toml").write_text(text, encoding="utf-8")
    job = load_job(root / "recipe.toml", root / "workspace")
    for stage in DATA_STAGES:
        stage.run(job, Silent())
    return Bench(job.recipe, training(job, job.recipe.law()[0], (), None, 1), root)


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "lora.safetensors").read_bytes()).hexdigest()[:12]


def _losses(folder: Path) -> list[float]:
    from pipeline.artefacts.files import read_json

    losses: list[float] = read_json(folder / "losses.json")
    return losses


def _same(name: str, one: Path, other: Path, *, exact: bool) -> Check:
    """Whether two trainings came to the same: in bytes, or in their losses."""
    if exact:
        digests = _digest(one), _digest(other)
        return Check(name, digests[0] == digests[1], f"LoRA {digests[0]} and {digests[1]}")
    pairs = zip(_losses(one), _losses(other), strict=True)
    apart = max(abs(a - b) / abs(a) for a, b in pairs)
    return Check(name, apart <= ALIKE, f"losses at most {apart:.1e} apart")


def _precisions(bench: Bench) -> Iterator[Check]:
    import torch

    from pipeline.train.run import Run

    gpu = torch.cuda.is_available()
    found: dict[str, float] = {}
    for precision in ("float32", "fp16") if gpu else ("float32",):
        run = Run(*bench.asked(f"precision-{precision}", precision=precision))
        with torch.no_grad():
            batches = (run.feed.at(number) for number in range(4))
            losses = [run.sample_losses(_on(run, batch)).mean() for batch in batches]
        found[precision] = float(torch.stack(losses).mean())
        del run
    for precision, loss in found.items():
        apart = abs(loss / found["float32"] - 1)
        yield Check(precision, apart <= CLOSE, f"loss {loss:.5f}, {apart:.1e} from float32")
    if not gpu:
        yield Check("fp16", None, "needs a GPU")


def _on(run: Any, batch: Any) -> Any:
    from pipeline.train.ahead import moved

    return moved(batch, run.accelerator.device)


def _resume(bench: Bench) -> Iterator[Check]:
    import torch

    from pipeline.train.round import train_round

    whole, cut = bench.asked("whole"), bench.asked("cut", save_every=3)
    train_round(*whole, Silent())

    def stop() -> None:
        if seen.count == 3:
            # As a person would ask for it.
            cut[1].stop.parent.mkdir(parents=True, exist_ok=True)
            cut[1].stop.touch()

    seen = _Notes(stop)
    with suppress(Interrupted):
        train_round(*cut, seen)
    train_round(*cut, Silent())
    exact = not torch.cuda.is_available()
    if seen.count >= STEPS:
        yield Check("resume", False, "was not cut off")
    yield _same("resume", whole[1].folder, cut[1].folder, exact=exact)


def _own_process(bench: Bench) -> Iterator[Check]:
    import torch

    from pipeline.train.round import train_round

    asked = bench.asked("own", process="own")
    train_round(*asked, Silent())
    exact = not torch.cuda.is_available()
    yield _same("own process", bench.folder / "whole", asked[1].folder, exact=exact)


def _devices(bench: Bench) -> Iterator[Check]:
    import torch

    from pipeline.train.round import train_round

    if torch.cuda.device_count() == 1:
        yield Check("devices", None, "needs two GPUs")
        return
    one = bench.asked("one-device", accumulation=2)
    two = bench.asked("two-devices", accumulation=2, devices=2)
    for asked in (one, two):
        train_round(*asked, Silent())
    yield _same("devices", one[1].folder, two[1].folder, exact=False)


SWITCHES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("plain", {"channels_last": False}),
    ("channels_last", {"channels_last": True}),
    ("gradient_checkpointing", {"gradient_checkpointing": True}),
)


def _speed_and_memory(bench: Bench) -> Iterator[Check]:
    """Told, not judged. On a GPU each switch in a process of its own, so that peaks are its own; on
    a CPU the peak is this process's, of all that it did, and starting others would take longest."""
    import torch

    from pipeline.train.round import train_round

    keys_of_all = {"process": "shared", "precision": "float32"}
    if torch.cuda.is_available():
        keys_of_all = {"process": "own", "precision": "fp16"}
    for name, keys in SWITCHES:
        seen = _Notes(lambda: None)
        asked = bench.asked(name, **keys_of_all, **keys)
        train_round(*asked, seen)
        yield Check(name, None, seen.last)


class _Notes(Silent):
    """Remembers the last words beside the bar: speed and memory are among them."""

    def __init__(self, on_note: Callable[[], None]) -> None:
        self.last, self.count, self.on_note = "", 0, on_note

    def bar(self, what: str, total: int, unit: str, done: int = 0) -> Bar:
        return _NotedBar(self)


class _NotedBar(SilentBar):
    def __init__(self, notes: _Notes) -> None:
        self._notes = notes

    def note(self, text: str) -> None:
        self._notes.last = text
        self._notes.count += 1
        self._notes.on_note()


CHECKS: Sequence[Callable[[Bench], Iterator[Check]]] = (
    _precisions,
    _resume,
    _own_process,
    _devices,
    _speed_and_memory,
)
