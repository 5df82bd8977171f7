"""What [train] asks of a machine that only a GPU can do: told before anything is fetched."""

from collections.abc import Iterable

from pipeline.errors import RequestError
from pipeline.recipe.train import Train

COMPILED = (
    "[train].compile needs a GPU, and there is none here: what torch compiles for a CPU gave "
    "gradients some percent off the right ones. Take it out."
)
FP16 = (
    '[train].precision is "fp16", which needs a GPU, and there is none here. '
    'Use "auto" or "float32".'
)


def without_gpu(trains: Iterable[Train]) -> list[str]:
    """Why rounds that train so would be refused for want of a GPU; empty where none would."""
    asked = list(trains)
    keys = [(COMPILED, any(train.compile for train in asked))]
    keys.append((FP16, any(train.precision == "fp16" for train in asked)))
    refused = [reason for reason, applies in keys if applies]
    return [] if not refused or gpu_here() else refused


def require_gpu(trains: Iterable[Train]) -> None:
    """Raises RequestError where one of `trains` needs a GPU, and there is none here."""
    for reason in without_gpu(trains):
        raise RequestError(reason)


def gpu_here() -> bool:
    """Whether accelerate would train on a GPU in this process."""
    # Imported here: it brings torch, and most recipes ask for nothing that needs it.
    from accelerate import PartialState

    return bool(PartialState().device.type == "cuda")
