"""`urushi selftest`: checks on this machine what was only ever checked on CPUs; see docs/gpu.md.

Draws a few pictures, runs the data stages on the shipped tiny base or on one of yours, and trains
short rounds: precisions and storage beside float32, a training cut in two beside a whole one, a
child process beside this one, two devices beside one, optimizers of 8 bits beside AdamW, and
seconds and memory with each switch.
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
    from torch import Tensor

    from pipeline.artefacts.job import Job
    from pipeline.recipe import BuildRecipe
    from pipeline.train.plan import RoundTraining

PICTURES, STEPS = 16, 8
CLOSE = 0.5
"""How far, relative, what moments of 8 bits taught may be from what AdamW did: 1 is nothing."""
STEADY = 1e-2
"""The same for gradients, compiled and not."""
ALIKE = 1e-3
"""The same for a loss after a resume on a GPU, whose sums are not always in one order, and for one
of several devices."""


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is as it should be (None: only told), and the figures."""

    name: str
    good: bool | None
    said: str


@dataclass(frozen=True)
class Bench:
    """A build whose data is cached and whose round can be trained, any number of times, under a
    folder."""

    job: "Job"
    folder: Path

    def asked(self, name: str, **train: Any) -> tuple["BuildRecipe", "RoundTraining"]:
        """The round in a folder of its own, with these keys of [train] changed."""
        from pipeline.rounds.training import training

        changed = self.job.recipe.train.model_copy(update=train)
        recipe = self.job.recipe.model_copy(update={"train": changed})
        asked = training(replace(self.job, build=recipe), recipe.law()[0], (), None, 1)
        return recipe, replace(asked, folder=self.folder / name)


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
    return Bench(job, root)


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "lora.safetensors").read_bytes()).hexdigest()[:12]


def _losses(folder: Path) -> list[float]:
    from pipeline.artefacts.files import read_json

    losses: list[float] = read_json(folder / "losses.json")
    return losses


def _same(name: str, one: Path, other: Path, *, most: float | None) -> Check:
    """Whether two trainings came to the same: in bytes, or in losses at most so far apart."""
    if most is None:
        digests = _digest(one), _digest(other)
        return Check(name, digests[0] == digests[1], f"LoRA {digests[0]} and {digests[1]}")
    pairs = zip(_losses(one), _losses(other), strict=True)
    apart = max(abs(a - b) / abs(a) for a, b in pairs)
    return Check(name, apart <= most, f"losses at most {apart:.1e} apart")


def _repeated() -> float | None:
    """How far apart the losses of one round trained twice may be; None: not in one bit."""
    import torch

    return ALIKE if torch.cuda.is_available() else None


PRECISIONS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("float32", {}, 0),
    ("fp16", {"precision": "fp16"}, 1e-2),
    ("bf16", {"precision": "bf16"}, 5e-2),
    ("fp8 storage", {"storage": "fp8"}, 0.1),
    ("int8 storage", {"storage": "int8"}, 0.1),
    ("nf4 storage", {"storage": "nf4"}, 0.3),
)
"""What of [train] is changed, and how far, relative, predictions may be from float32's: some times
what was seen of the shipped base on a CPU."""


def _precisions(bench: Bench) -> Iterator[Check]:
    import torch

    from pipeline.train.run import Run

    gpu = torch.cuda.is_available()
    exact = torch.zeros(())
    for name, keys, most in PRECISIONS:
        if name == "fp16" and not gpu:
            yield Check(name, None, "needs a GPU")
            continue
        if "storage" in keys and gpu:
            keys = {**keys, "precision": "fp16"}
        run = Run(*bench.asked(f"precision-{name}", **keys))
        said = torch.cat([_predicted(run, number).flatten() for number in range(4)])
        del run
        exact = said if name == "float32" else exact
        apart = float((said - exact).norm() / exact.norm())
        yield Check(name, apart <= most, f"predictions {apart:.1e} from float32's")


def _predicted(run: Any, number: int) -> "Tensor":
    """(B, C, H, W): what the network says of a batch, before it has learnt anything."""
    import torch

    from pipeline.train.ahead import moved
    from pipeline.train.objective import noisy

    batch = moved(run.feed.at(number), run.accelerator.device)
    mixed = noisy(run.noise_schedule, batch.latents, batch.shown, batch.timesteps)
    with torch.no_grad(), run.accelerator.autocast():
        said: Tensor = run.network(mixed, batch.timesteps, batch.told)
    return said.float().cpu()


def _resume(bench: Bench) -> Iterator[Check]:

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
    if seen.count >= STEPS:
        yield Check("resume", False, "was not cut off")
    yield _same("resume", whole[1].folder, cut[1].folder, most=_repeated())


def _own_process(bench: Bench) -> Iterator[Check]:

    from pipeline.train.round import train_round

    asked = bench.asked("own", process="own")
    train_round(*asked, Silent())
    yield _same("own process", bench.folder / "whole", asked[1].folder, most=_repeated())


def _devices(bench: Bench) -> Iterator[Check]:
    import torch

    from pipeline.train.round import train_round

    if torch.cuda.device_count() == 1:
        yield Check("devices", None, "needs two GPUs")
        return
    for name, rate in (("devices", 0.0), ("devices, text encoders", 0.5)):
        keys = {"accumulation": 2, "text_encoder_rate": rate}
        one = bench.asked(f"one of {name}", **keys)
        two = bench.asked(f"two of {name}", **keys, devices=2)
        for asked in (one, two):
            train_round(*asked, Silent())
        yield _same(name, one[1].folder, two[1].folder, most=ALIKE)


def _optimizers(bench: Bench) -> Iterator[Check]:
    """Those of 8 bits, whose kernels are a card's own, beside AdamW."""
    import torch

    from pipeline.train.round import train_round

    for name in ("adamw8bit", "pagedadamw8bit"):
        if name.startswith("paged") and not torch.cuda.is_available():
            yield Check(name, None, "needs a GPU")
            continue
        asked = bench.asked(name, optimizer=name)
        train_round(*asked, Silent())
        wanted, found = (_learnt(folder) for folder in (bench.folder / "whole", asked[1].folder))
        apart = float((found - wanted).norm() / wanted.norm())
        yield Check(name, apart <= CLOSE, f"LoRA {apart:.1e} from AdamW's")


def _learnt(folder: Path) -> "Tensor":
    """(N,): of a training the factors that begin at zero."""
    import torch
    from safetensors.torch import load_file

    tensors = sorted(load_file(folder / "lora.safetensors").items())
    return torch.cat([v.float().flatten() for k, v in tensors if "lora_up" in k])


def _compiled(bench: Bench) -> Iterator[Check]:
    """By what plain descent taught, which is the sum of the gradients: on a CPU, where compiled
    ones were found to be wrong, losses did not show it."""
    import torch

    from pipeline.train.round import train_round

    if not torch.cuda.is_available():
        yield Check("compile", None, "needs a GPU")
        return
    learnt = []
    for name, asked in (("not compiled", False), ("compiled", True)):
        one = bench.asked(name, compile=asked, optimizer="torch.optim.SGD")
        train_round(*one, Silent())
        learnt.append(_learnt(bench.folder / name))
    apart = float((learnt[1] - learnt[0]).norm() / learnt[0].norm())
    yield Check("compile", apart <= STEADY, f"gradients {apart:.1e} from plain ones")


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
    _optimizers,
    _compiled,
    _speed_and_memory,
)
