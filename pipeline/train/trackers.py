"""Where a training's curves go: to files of TensorBoard's in its folder, or to a run of W&B's.

tensorboard --logdir WORKSPACE/builds/NAME/rounds

W&B's runs are of the project "urushi", or of WANDB_PROJECT, a run for each attempt at a round.
"""

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import RequestError

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

EXTRAS = {"wandb": "'urushi[wandb]'"}
"""What to install where a tracker is no part of urushi itself."""


def require_trackers(names: Sequence[str]) -> None:
    """Raises RequestError for a tracker whose package is not installed."""
    for name in names:
        found = find_spec(name)
        # A folder of that name, as W&B leaves where it ran, is found too, without an origin.
        if found is None or found.origin is None:
            raise RequestError(
                f'[train].trackers names "{name}", which is not installed. Run: pip install '
                f"{EXTRAS.get(name, name)}; or take it out of the list."
            )


def begun(
    names: Sequence[str], folder: Path, step: int, fingerprint: str, settings: Mapping[str, Any]
) -> "list[GeneralTracker]":
    """The trackers of the training in `folder`, open.

    Args:
        step: from which it goes on.
        fingerprint: of the training: another's curves are not gone on with.
        settings: shown beside W&B's curves.

    Raises:
        RequestError: one is not installed, or W&B does not begin.
    """
    require_trackers(names)
    return [
        _wandb(folder, fingerprint, settings) if name == "wandb" else _tensorboard(folder, step)
        for name in names
    ]


def _tensorboard(folder: Path, step: int) -> "GeneralTracker":
    from accelerate.tracking import TensorBoardTracker

    tracker = TensorBoardTracker("curves", str(folder), purge_step=step + 1)
    tracker.start()
    return tracker


def _wandb(folder: Path, fingerprint: str, settings: Mapping[str, Any]) -> "GeneralTracker":
    from accelerate.tracking import WandBTracker
    from wandb.errors import Error

    name = "-".join(folder.parts[-4:])  # BUILD/rounds/NN/train
    tracker = WandBTracker(
        os.environ.get("WANDB_PROJECT", "urushi"),
        name=name,
        id=f"{name}-{fingerprint[:8]}",
        resume="allow",
        dir=str(folder),
        config=dict(settings),
    )
    try:
        tracker.start()
    except Error as error:
        raise RequestError(
            f'[train].trackers names "wandb", and W&B does not begin: {error} Run `wandb login`, '
            "or set WANDB_MODE=offline, or take it out of the list."
        ) from error
    return tracker
