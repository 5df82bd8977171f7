"""One process at a time on a GPU: a lock for each card, for runs by hand and scheduled alike.

Memory of a consumer card holds one training. Prefect's limits know nothing of a `urushi train`
typed in a shell; a flock in the machine's temporary folder does, and it cannot go stale.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.artefacts.files import translated
from pipeline.artefacts.locks import holder, take, wait_for

DEVICES = Path("/dev")
FOLDER = Path(tempfile.gettempdir()) / "urushi-gpus"


def gpus(environment: Mapping[str, str] = os.environ, devices: Path = DEVICES) -> tuple[str, ...]:
    """The cards that a training here would use, by name; none where there is no card.

    URUSHI_GPUS names them where looking fails (a container, another vendor's driver); empty, it
    switches the locks off. Else the first of CUDA_VISIBLE_DEVICES, else card 0: training takes one.
    """
    named = environment.get("URUSHI_GPUS")
    if named is not None:
        return _names(named)
    if not any(devices.glob("nvidia[0-9]*")) and not (devices / "kfd").exists():
        return ()
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("HIP_VISIBLE_DEVICES"))
    return _names("0" if visible is None else visible)[:1]


def _names(listed: str) -> tuple[str, ...]:
    """ "0,2" -> ("0", "2"); "-1" hides every card, as CUDA reads it."""
    names = [name.strip() for name in listed.split(",") if name.strip()]
    return tuple(dict.fromkeys(name for name in names if name != "-1"))


@contextmanager
def turn(
    say: Callable[[str], None], names: Sequence[str] | None = None, folder: Path = FOLDER
) -> Iterator[None]:
    """Holds the cards `names` (default: `gpus()`) for this process, waiting for whoever has them.

    Args:
        say: is told once for each card that is waited for.

    Raises:
        RequestError: the folder of the locks cannot be written.
    """
    # In one order everywhere: two that need two cards never wait for each other.
    wanted = sorted(gpus() if names is None else names)
    with ExitStack() as held:
        for name in wanted:
            descriptor = _open(folder, name)
            held.callback(os.close, descriptor)
            if not take(descriptor):
                say(f"GPU {name} is used by process {holder(descriptor)}. Waiting for it …")
                wait_for(descriptor)
        yield


def _open(folder: Path, name: str) -> int:
    path = folder / f"{name.replace('/', '_')}.lock"
    with translated(path):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(PermissionError):
            # Every user of the machine shares its cards.
            folder.chmod(0o1777)
        try:
            # Not O_CREAT first: in a sticky folder Linux refuses that for other users' files.
            return os.open(path, os.O_RDWR)
        except FileNotFoundError:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            os.fchmod(descriptor, 0o666)
            return descriptor
