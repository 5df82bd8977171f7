"""One round's training: found done, or trained here or in a process of its own."""

from pipeline.artefacts.receipts import Receipt, done
from pipeline.progress import Progress
from pipeline.recipe import BuildRecipe
from pipeline.train.apart import is_apart, train_apart
from pipeline.train.loop import train_here
from pipeline.train.plan import RoundTraining
from pipeline.train.stopping import Stopping


def train_round(recipe: BuildRecipe, training: RoundTraining, progress: Progress) -> Receipt:
    """Trains, or finds it done; returns the receipt, whose summary has steps, train_loss, seconds.

    Raises:
        RequestError: no pictures to train on, a configuration that this version does not run, or a
            resume point made under other settings.
        Interrupted: someone asked it to stop; all steps are saved.
        UrushiError: the loss is not finite, or grows; or the process that trained crashed.
    """
    receipt = done(training.folder, training.fingerprint)
    if receipt is not None:
        return receipt
    if is_apart(recipe):
        return train_apart(recipe, training, progress)
    with Stopping(training.stop) as stopping:
        receipt = train_here(recipe, training, progress, stopping)
        if stopping.asked:
            stopping.end(f"Stopped after round {training.round} was trained.")
        return receipt
