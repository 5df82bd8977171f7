"""One round's training in a process of its own: a file of `apart` into a LoRA.

    python -m pipeline.train.child FOLDER

Started by `apart`, directly or by accelerate's launcher. Says how far it is by lines in
FOLDER/progress.jsonl; what libraries print goes where standard output goes.
"""

import os
import sys
from pathlib import Path

from accelerate import PartialState

from pipeline.errors import UrushiError
from pipeline.progress import Silent
from pipeline.train.apart import LINES, read_task
from pipeline.train.lines import Lines
from pipeline.train.loop import train_here
from pipeline.train.stopping import Stopping
from pipeline.train.supervise import Lifeline


def main(folder: Path) -> int:
    """Trains what FOLDER asks for; returns the exit code, an error being told by a line."""
    recipe, training = read_task(folder)
    # The environment says so to accelerate's other half only.
    state = PartialState(cpu=os.environ.get("ACCELERATE_USE_CPU") == "true")
    with Stopping(training.stop) as stopping, open(folder / LINES, "a", encoding="utf-8") as file:
        Lifeline(stopping.tell)
        lines = Lines(file)
        try:
            progress = lines if state.is_main_process else Silent()
            train_here(recipe, training, progress, stopping)
        except UrushiError as error:
            lines.error(error)
            return error.exit_code
        finally:
            state.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
