"""`urushi demo`: the whole job, small, with everything it needs on board.

Starts the embedded booru, points the recipes of datasets/tiny at it and at the tiny base, and does
what `urushi run` does with them; then says what came out. No part knows that it is a demo.
"""

import resource
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import tomli_w

from flows.run import run_recipe
from flows.work import PartRun
from pipeline.artefacts.files import write_text
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.ledger import Ledger, read_ledger
from pipeline.artefacts.runs import finished, run_fingerprint, run_root
from pipeline.errors import GateStopped, RequestError
from urushi.progress import Terminal
from urushi.recipes import shipped, tiny_base
from urushi.rounds import rounds_table
from urushi.run import print_products
from urushi.table import duration, size, table

PORT = 8642
NOTE = """\
# Written by `urushi demo` from datasets/tiny, with this machine's addresses. Edit those, not this.

"""


def run_demo(workspace: Path) -> None:
    """Runs the demo in `workspace`, or goes on with it, and prints what came out.

    Raises:
        GateStopped: the gate stopped the build; the table is printed all the same.
        UrushiError: whatever else stopped it; what was finished stands.
    """
    started, progress = time.monotonic(), Terminal()
    job = _job(workspace, f"http://127.0.0.1:{PORT}")
    runs: Sequence[PartRun] = ()
    try:
        if finished(run_root(job), run_fingerprint(job)):
            runs = run_recipe(job, progress)
        else:
            with _booru() as url:
                progress.say(f"The embedded booru answers at {url}")
                runs = run_recipe(_job(workspace, url), progress)
    except GateStopped:
        _show(job, runs, time.monotonic() - started)
        raise
    _show(job, runs, time.monotonic() - started)


@contextmanager
def _booru() -> Iterator[str]:
    """The embedded booru's address while it runs."""
    from demo.booru import running

    with ExitStack() as stack:
        try:
            booru = stack.enter_context(running(PORT))
        except RequestError:
            # Somebody listens there, another demo perhaps; where the pictures come from decides
            # nothing, so any port will do.
            booru = stack.enter_context(running())
        yield booru.url


def _job(workspace: Path, url: str) -> Job:
    """The tiny recipes with the booru's address and the tiny base, written to WORKSPACE/recipes."""
    folder, source = workspace / "recipes" / "tiny", shipped("tiny")
    pictures = tomllib.loads((source / "pictures.toml").read_text(encoding="utf-8"))
    pictures["download"]["host"] = url
    build = tomllib.loads((source / "build.toml").read_text(encoding="utf-8"))
    build["base"] = {
        "checkpoint": str(tiny_base() / Path(build["base"]["checkpoint"]).name),
        "config": str(tiny_base() / Path(build["base"]["config"]).name),
    }
    write_text(folder / "pictures.toml", NOTE + tomli_w.dumps(pictures))
    write_text(folder / "build.toml", NOTE + tomli_w.dumps(build))
    return load_job(folder / "build.toml", workspace)


def _show(job: Job, runs: Sequence[PartRun], seconds: float) -> None:
    ledger = read_ledger(job.folder.ledger)
    if runs:
        print("\nPhases")
        print(phases(runs))
        print(f"  {duration(seconds)} in all, {memory()}")
    print("\nRounds")
    print(rounds_table([row.model_dump() for row in ledger.rounds]))
    print(f"  {verdict(ledger)}\n")
    print_products(job)
    grids = sorted(job.folder.root.glob("rounds/*/grid.png"))
    if grids:
        print(f"{'last grid':<11} {grids[-1]}")


def verdict(ledger: Ledger) -> str:
    """How far the held-out loss fell, in a sentence."""
    rows = [row for row in ledger.rounds if row.strength > 0]
    if not rows or not ledger.heldout_origin:
        return "No round was merged."
    last, first, how = rows[-1].heldout_after, ledger.heldout_origin, ""
    if ledger.refit is not None and ledger.refit.kept:
        last, how = ledger.refit.after, ", all strengths fitted together"
    fell = 1 - last / first
    return (
        f"{len(rows)} of {len(ledger.rounds)} rounds merged; held-out loss {first:.4f} -> "
        f"{last:.4f} ({fell:.0%} lower than the origin's{how})"
    )


def phases(runs: Sequence[PartRun]) -> str:
    """Seconds by part."""
    rows = [
        (run.name, f"{run.seconds:.1f}", "already done" if run.outcome.already else "")
        for run in runs
    ]
    return table(("part", "seconds", ""), rows)


def memory() -> str:
    """The most memory that this process held, and the largest of its children."""
    # Linux counts in KiB.
    own, child = (
        resource.getrusage(who).ru_maxrss * 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return f"peak memory {size(own)} (largest helper process {size(child)})"
