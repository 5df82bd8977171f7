"""What Prefect adds: to a finished build over the same look by hand, to a task, to the database.

python benchmarks/flows.py [--quick] [--json FILE]

A server on loopback is started first and not counted. `urushi run` on a finished build starts no
Prefect at all, so what is measured is a run in which every part finds its work done.
"""

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
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


def walk(folder: Path, tasks: int, how: str, environment: dict[str, str]) -> float:
    """Seconds of a process that walks `tasks` parts which are all done, imports included."""
    words = [sys.executable, "-c", WALK, folder / "build.toml", folder / "workspace", str(tasks)]
    ended = subprocess.run(
        [*words, how], capture_output=True, text=True, check=True, env=environment
    )
    return float(ended.stdout)


def database_kb(home: Path) -> float:
    """KB of the database, once its log is folded into it."""
    with sqlite3.connect(home / "prefect.db", timeout=60) as database:
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
            by_hand = statistics.median(
                walk(folder, few, "hand", environment) for _ in range(REPEATS)
            )
            short = statistics.median(
                walk(folder, few, "prefect", environment) for _ in range(REPEATS)
            )
            before = database_kb(home)
            long = walk(folder, tasks, "prefect", environment)
            # Events reach the database in batches, a little later.
            time.sleep(5)
            after = database_kb(home)
        finally:
            server.end()
    figures = {
        "prefect_overhead_s": round(short - by_hand, 2),
        "per_task_ms": round(1000 * (long - short) / (tasks - few), 1),
        "db_kb_per_task": round((after - before) / tasks, 1),
    }
    print(f"a run of {few} parts, all done: {short:.2f} s with a server, {by_hand:.2f} s by hand")
    print(f"  so Prefect adds {figures['prefect_overhead_s']} s;")
    print(f"  {figures['per_task_ms']} ms and {figures['db_kb_per_task']} KB of database a task")
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
