"""What Prefect adds: to a finished build over the same look by hand, to a task, to the database.

python benchmarks/flows.py [--quick] [--json FILE]

A server on loopback is started first and not counted. `urushi run` on a finished build starts no
Prefect at all, so what is measured is a run in which every part finds its work done. Seconds of the
clock grow with whatever else the machine does; those of the processor, beside them, hardly.
"""

import argparse
import json
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

# A script's own folder comes first, and there this file is called what the room is.
sys.path.remove(str(Path(__file__).parent))

from flows.server import start
from flows.settings import prepare

TASKS, QUICK = 500, 50
REPEATS = 3

WALK = """
import sys, time
from pathlib import Path
from dataclasses import dataclass
from collections.abc import Callable
started = time.monotonic()
from flows import work
from flows.run import run_recipe
from pipeline.artefacts.job import Outcome, load_job
from pipeline.progress import Silent

@dataclass(frozen=True)
class Part:
    name: str
    run: Callable

done = lambda job, progress: Outcome("part", True, "already done")
job = load_job(Path(sys.argv[1]), Path(sys.argv[2]))
parts = [Part(f"part-{n}", done) for n in range(int(sys.argv[3]))]
if sys.argv[4] == "prefect":
    work.data_parts = lambda job: ()
    run_recipe(job, Silent(), parts)
else:
    for part in parts:
        part.run(job, Silent())
print(time.monotonic() - started)
"""
RECIPE = 'name = "bench"\n[base]\ncheckpoint = "none.safetensors"\n[dataset]\nrecipe = "set.toml"\n'


@dataclass(frozen=True)
class Walk:
    """What a walk took, in seconds."""

    clock: float
    """From its first line to its last."""
    processor: float
    """Of its process, the start of Python and its end included."""


def processor() -> float:
    """Seconds of processor that ended children of this process have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def walk(folder: Path, tasks: int, how: str, environment: dict[str, str]) -> Walk:
    """A process that walks `tasks` parts which are all done, imports included."""
    before = processor()
    words = [sys.executable, "-c", WALK, folder / "build.toml", folder / "workspace", str(tasks)]
    ended = subprocess.run(
        [*words, how], capture_output=True, text=True, check=True, env=environment
    )
    return Walk(float(ended.stdout), processor() - before)


def middle(folder: Path, tasks: int, how: str, environment: dict[str, str]) -> Walk:
    """The medians of several walks."""
    walks = [walk(folder, tasks, how, environment) for _ in range(REPEATS)]
    return Walk(
        statistics.median(one.clock for one in walks),
        statistics.median(one.processor for one in walks),
    )


def await_events(home: Path, tasks: int, seconds: float = 120.0) -> None:
    """Waits until the last event of `tasks` task runs lies in the database: they are written in
    batches, a little later.

    Raises:
        TimeoutError: they do not come.
    """
    asked = "select count(*) from events where event = 'prefect.task-run.Already done'"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with closing(sqlite3.connect(home / "prefect.db", timeout=60)) as database:
            if database.execute(asked).fetchone()[0] >= tasks:
                return
        time.sleep(0.2)
    raise TimeoutError(f"the events of {tasks} task runs did not come within {seconds:.0f} s")


def database_kb(home: Path) -> float:
    """KB of the database, once its log is folded into it."""
    with closing(sqlite3.connect(home / "prefect.db", timeout=60)) as database:
        database.execute("pragma wal_checkpoint(truncate)")
        pages, size = (
            database.execute(f"pragma {n}").fetchone()[0] for n in ("page_count", "page_size")
        )
    return float(pages * size) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    tasks = QUICK if asked.quick else TASKS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        (folder / "set.toml").write_text('name = "set"\n[folder]\npath = "pictures"\n')
        (folder / "build.toml").write_text(RECIPE)
        ours = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        os.environ.clear()
        os.environ.update(ours)
        home = prepare(folder / "workspace", standing=True)
        os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
        server = start(home, standing=True)
        try:
            server.wait()
            environment = os.environ | {"PREFECT_API_URL": server.address}
            walk(folder, 1, "prefect", environment)  # Byte code, and the first rows.
            few = 10
            by_hand = middle(folder, few, "hand", environment)
            short = middle(folder, few, "prefect", environment)
            done = 1 + REPEATS * few
            await_events(home, done)
            before = database_kb(home)
            long = walk(folder, tasks, "prefect", environment)
            await_events(home, done + tasks)
            after = database_kb(home)
        finally:
            server.end()
    figures = {
        "prefect_overhead_s": round(short.clock - by_hand.clock, 2),
        "prefect_overhead_cpu_s": round(short.processor - by_hand.processor, 2),
        "per_task_ms": round(1000 * (long.clock - short.clock) / (tasks - few), 1),
        "db_kb_per_task": round((after - before) / tasks, 1),
    }
    print(f"a run of {few} parts, all done: {short.clock:.2f} s with a server, ", end="")
    print(f"{by_hand.clock:.2f} s by hand")
    print(f"  so Prefect adds {figures['prefect_overhead_s']} s, ", end="")
    print(f"of which {figures['prefect_overhead_cpu_s']} s are computed;")
    print(f"  {figures['per_task_ms']} ms and {figures['db_kb_per_task']} KB of database a task")
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
