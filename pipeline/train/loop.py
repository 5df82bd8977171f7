"""Trains one round's LoRA, from its last resume point if there is one."""

import time

from pipeline.artefacts.locks import locked
from pipeline.artefacts.receipts import Receipt, done
from pipeline.progress import Progress
from pipeline.recipe import BuildRecipe
from pipeline.train.plan import RoundTraining
from pipeline.train.product import write_product
from pipeline.train.run import Run
from pipeline.train.stopping import Stopping


def train_round(recipe: BuildRecipe, training: RoundTraining, progress: Progress) -> Receipt:
    """Trains, or finds it done; returns the receipt, whose summary has steps, train_loss, seconds.

    Raises:
        RequestError: no pictures to train on, a configuration that this version does not run, or a
            resume point made under other settings.
        Interrupted: someone asked it to stop; all steps are saved.
        UrushiError: the loss is not finite, or grows.
    """
    receipt = done(training.folder, training.fingerprint)
    if receipt is not None:
        return receipt
    with locked(training.folder), Stopping(training.stop) as stopping:
        run = Run(recipe, training)
        run.resume()
        _steps(run, stopping, progress)
        return write_product(run)


def _steps(run: Run, stopping: Stopping, progress: Progress) -> None:
    train, name = run.recipe.train, f"train {run.training.round}"
    saved = time.monotonic()
    with progress.bar(name, run.steps, "step", run.step) as bar:
        while run.step < run.steps:
            if stopping.asked:
                run.save()
                stopping.end(f"Stopped {name} after step {run.step} of {run.steps}; it is saved.")
            run.advance()
            bar.advance()
            if run.step % train.log_every == 0 or run.step % train.save_every == 0:
                run.look()
                bar.note(f"loss {run.losses.mean:.4f}")
                minutes = (time.monotonic() - saved) / 60
                if run.step % train.save_every == 0 or minutes >= train.save_minutes:
                    run.save()
                    saved = time.monotonic()
        run.look()
