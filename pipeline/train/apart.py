"""A round's training handed to a process of its own, or to several on as many devices."""

import gc
import os
import sys
import time
from pathlib import Path

import torch
from pydantic import TypeAdapter

import pipeline
from pipeline.artefacts.files import remove, write_text
from pipeline.artefacts.locks import is_locked
from pipeline.artefacts.receipts import Receipt, done
from pipeline.errors import RequestError, UrushiError
from pipeline.progress import Progress
from pipeline.recipe import BuildRecipe
from pipeline.train.lines import Replay
from pipeline.train.plan import RoundTraining
from pipeline.train.stopping import Stopping
from pipeline.train.supervise import GRACE, supervise

TASK, RECIPE = "task.json", "recipe.json"
LINES, LOG = "progress.jsonl", "train.log"
_LAST = 12
"""Lines of the log that an error quotes."""


def is_apart(recipe: BuildRecipe) -> bool:
    """Whether the recipe wants its rounds trained in processes of their own."""
    train = recipe.train
    several = train.devices > 1 or train.accelerate_config is not None
    if train.process == "auto":
        return several or torch.cuda.is_available()
    return several or train.process == "own"


def train_apart(recipe: BuildRecipe, training: RoundTraining, progress: Progress) -> Receipt:
    """As `train_here`, in a child. It makes the same bytes.

    Where this process is asked to stop, the child is, and saves. Where this process dies, the child
    saves and ends by itself; until it has, it holds the training's folder, and a next run waits.

    Raises:
        UrushiError: what the child raised; or that it crashed, with the end of its log.
    """
    folder = training.folder
    _await_orphan(folder, progress)
    write_text(folder / RECIPE, _of_one_round(recipe).model_dump_json())
    write_text(folder / TASK, TypeAdapter(RoundTraining).dump_json(training).decode())
    _free_memory()
    replay = Replay(progress)
    with Stopping(training.stop) as stopping:
        try:
            code = supervise(
                _command(recipe, folder),
                _environment(recipe),
                folder / LOG,
                folder / LINES,
                replay.take,
                lambda: stopping.signalled,
            )
        finally:
            replay.close()
        if stopping.signalled:
            stopping.end(str(replay.error or f"Stopped round {training.round}."))
    receipt = done(folder, training.fingerprint)
    if replay.error is not None:
        raise replay.error
    if receipt is None:
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        raise UrushiError(
            f"The trainer of round {training.round} ended {how}. Its resume point stands: run the "
            f"same command again. Its log is {folder / LOG}, which ends:\n{_end_of(folder / LOG)}"
        )
    for name in (RECIPE, TASK, LINES):
        remove(folder / name)
    return receipt


def _of_one_round(recipe: BuildRecipe) -> BuildRecipe:
    """Without what other rounds do: `recipe` has a round's own [train], with which theirs need not
    go together, and the child reads it anew."""
    rounds = recipe.rounds.model_copy(update={"count": 1, "encoders_apart": False})
    return recipe.model_copy(update={"round": (), "rounds": rounds})


def read_task(folder: Path) -> tuple[BuildRecipe, RoundTraining]:
    """In the child: what `train_apart` wrote."""
    recipe = BuildRecipe.model_validate_json((folder / RECIPE).read_bytes())
    return recipe, TypeAdapter(RoundTraining).validate_json((folder / TASK).read_bytes())


def _command(recipe: BuildRecipe, folder: Path) -> list[str]:
    train, child = recipe.train, "pipeline.train.child"
    if train.devices == 1 and train.accelerate_config is None:
        return [sys.executable, "-m", child, str(folder)]
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    if train.accelerate_config is not None:
        launch += ["--config_file", str(train.accelerate_config)]
    else:
        cards = torch.cuda.device_count()
        if torch.cuda.is_available() and train.devices > cards:
            raise RequestError(
                f"[train].devices is {train.devices}, and there are {cards} GPUs here. "
                "Lower it, or look at CUDA_VISIBLE_DEVICES."
            )
        launch += ["--multi_gpu", "--num_machines", "1", "--num_processes", str(train.devices)]
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        # Any free port: two builds may train at once.
        launch += ["--main_process_port", "0"]
    return [*launch, "--module", child, str(folder)]


def _environment(recipe: BuildRecipe) -> dict[str, str]:
    """Ours, with the place of this very code; a folder that we stand in must hide no package."""
    found = dict(os.environ)
    places = [str(Path(pipeline.__path__[0]).parent), found.get("PYTHONPATH", "")]
    found |= {"PYTHONPATH": os.pathsep.join(p for p in places if p), "PYTHONSAFEPATH": "1"}
    if not torch.accelerator.is_available():
        found["ACCELERATE_USE_CPU"] = "true"
    if recipe.train.devices == 1 and recipe.train.accelerate_config is None:
        # The number of threads moves a sum's last bit.
        found["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    return found


def _await_orphan(folder: Path, progress: Progress) -> None:
    """Waits for the trainer of a run that died, while it saves; a BusyError comes from the child
    where it does not end."""
    if not is_locked(folder):
        return
    progress.say("Waiting for the trainer of an earlier run, which is saving …")
    deadline = time.monotonic() + GRACE + 5
    while is_locked(folder) and time.monotonic() < deadline:
        time.sleep(0.2)


def _free_memory() -> None:
    """Gives back what this process holds of the GPU for nothing: the child needs it."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _end_of(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-_LAST:])
