"""`urushi status [--json]`: what is done, what runs, what failed and why, from receipts and locks.

The JSON:

    {"workspace": PATH,
     "datasets": [{"name", "state", "part", "error", "at",
                   "stages": [{"stage", "fingerprint", "finished_at", "seconds", "summary"}]}],
     "builds":   [{"name", "state", "part", "error", "at", "seconds",
                   "rounds": [{"round", "learning_rate", "steps", "strength", "heldout_before",
                               "heldout_after", "decision", "seconds"}],
                   "final", "final_lora", "report"}]}

`state` is "idle" (never run as such), "running", "finished", "failed", "interrupted",
"stopped by the gate" or "waiting" (for a person, `error` says what about); of a dataset it is about
runs of its own recipe, and `stages` lists what is done whoever asked for it. `part` and `error` are
null where there is none, paths until the files are there.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.artefacts.ledger import RoundRow, read_ledger
from pipeline.artefacts.locks import is_locked
from pipeline.artefacts.receipts import NAME, read_receipt
from pipeline.artefacts.runs import RUN_LOCK, read_run
from pipeline.artefacts.workspace import BuildFolder, Workspace
from pipeline.errors import UrushiError
from pipeline.stages import DATA_STAGES
from urushi.rounds import rounds_table
from urushi.table import duration, table

ROUND_FIELDS = (
    "round",
    "learning_rate",
    "steps",
    "strength",
    "heldout_before",
    "heldout_after",
    "decision",
    "seconds",
)


def print_status(workspace: Path, as_json: bool) -> None:
    """Prints the status of everything in `workspace`, which may not exist yet."""
    facts = status(workspace)
    print(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else render(facts))


def status(workspace: Path) -> dict[str, Any]:
    """The facts, in the shape that this module's docstring gives."""
    place = Workspace(workspace.resolve())
    return {
        "workspace": str(place.root),
        "datasets": [_dataset(folder) for folder in _folders(place.root / "datasets")],
        "builds": [_build(place, folder.name) for folder in _folders(place.root / "builds")],
    }


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []


def _run(root: Path) -> dict[str, Any]:
    run = read_run(root)
    working = is_locked(root) or is_locked(root, RUN_LOCK)
    if run is None:
        state = "running" if working else "idle"
        return {"state": state, "part": None, "error": None, "at": None}
    state = run.state
    if working:
        state = "running"
    elif state == "running":
        # Whoever wrote this is gone without a word: killed, or the power failed.
        state = "interrupted"
    error = run.error if state in ("failed", "stopped by the gate", "waiting") else None
    part = run.part if state != "finished" else None
    return {"state": state, "part": part, "error": error, "at": run.at}


def _dataset(root: Path) -> dict[str, Any]:
    stages = []
    for path in sorted([*root.glob(f"images/{NAME}"), *root.glob(f"*/*/{NAME}")]):
        receipt = read_receipt(path.parent)
        if receipt is not None:
            stages.append(
                {
                    "stage": receipt.stage,
                    "fingerprint": receipt.fingerprint,
                    "finished_at": receipt.finished_at,
                    "seconds": receipt.seconds,
                    "summary": receipt.summary,
                }
            )
    stages.sort(key=lambda stage: (_place(str(stage["stage"])), str(stage["finished_at"])))
    return {"name": root.name, **_run(root), "stages": stages}


def _place(stage: str) -> int:
    """Where in the flow of data a receipt of `stage` belongs; the cache writes two kinds."""
    order = [s.name for s in DATA_STAGES]
    return order.index(stage) if stage in order else len(order)


def _build(workspace: Workspace, name: str) -> dict[str, Any]:
    folder = workspace.build(name)
    facts: dict[str, Any] = {"name": name, **_run(folder.root)}
    rows: tuple[RoundRow, ...] = ()
    seconds: dict[str, float] = {}
    if folder.ledger.is_file():
        try:
            ledger = read_ledger(folder.ledger)
        except UrushiError as error:
            facts |= {"state": "failed", "error": str(error)}
        else:
            rows, seconds = ledger.rounds, ledger.seconds
    return facts | {
        "seconds": seconds,
        "rounds": [row.model_dump(mode="json", include=set(ROUND_FIELDS)) for row in rows],
        "final": _there(_final(folder)),
        "final_lora": _there(folder.final_lora),
        "report": _there(folder.report),
    }


def _final(folder: BuildFolder) -> Path:
    """A file or a folder, as the base is one; the recipe is not asked, as it may be gone."""
    as_folder = BuildFolder(folder.root, "").final
    return as_folder if as_folder.is_dir() else folder.final


def _there(path: Path) -> str | None:
    return str(path) if path.exists() else None


def render(facts: dict[str, Any]) -> str:
    """The facts for a person."""
    lines = [f"workspace {facts['workspace']}"]
    for kind in ("dataset", "build"):
        for item in facts[f"{kind}s"]:
            lines.append(f"{kind} {item['name']}: {_state(item)}")
            lines += _stage_lines(item) if kind == "dataset" else _build_lines(item)
    if len(lines) == 1:
        lines.append("nothing yet: urushi new NAME, or urushi demo")
    return "\n".join(lines)


def _state(item: dict[str, Any]) -> str:
    part = f" in {item['part']}" if item["part"] else ""
    at = f" ({item['at']})" if item["at"] else ""
    error = f"\n  {item['error']}" if item["error"] else ""
    return f"{item['state']}{part}{at}{error}"


def _stage_lines(item: dict[str, Any]) -> list[str]:
    rows = [
        (
            str(stage["stage"]),
            str(stage["fingerprint"]),
            str(stage["finished_at"]),
            duration(stage["seconds"]),
            ", ".join(
                f"{key.replace('_', ' ')} {value}"
                for key, value in stage["summary"].items()
                if isinstance(value, int)
            ),
        )
        for stage in item["stages"]
    ]
    return [table(("stage", "fingerprint", "finished", "took", "made"), rows)] if rows else []


def _build_lines(item: dict[str, Any]) -> list[str]:
    lines = []
    if item["rounds"]:
        lines.append(rounds_table(item["rounds"]))
    lines += [f"  {key} {item[key]}" for key in ("final", "final_lora", "report") if item[key]]
    return lines
