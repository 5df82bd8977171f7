"""last_run.json: how a recipe's last run went. For `urushi status`, and to leave finished ones be.

A run that finished leaves the proof: a fingerprint of all that it was asked, and the sizes of what
it made. As long as both hold, there is nothing to do, and nothing of the run need be started.
"""

import os
import time
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipeline.artefacts.chain import VERSIONS, download_fingerprint
from pipeline.artefacts.files import files_of, write_text
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job
from pipeline.artefacts.records import Record

RUN_FILE = "last_run.json"
RUN_LOCK = ".run.lock"

State = Literal["running", "finished", "failed", "interrupted", "stopped by the gate", "waiting"]


class RunRecord(Record):
    """How far the last run got."""

    state: State
    """"running" where no process holds the run's lock means that it was killed; "waiting", that a
    round waits for a person's decision."""
    part: str | None
    """The stage or part that runs, failed or was interrupted."""
    error: str | None
    """What the user was told."""
    at: str
    """UTC, when this was written."""
    pid: int
    fingerprint: str
    files: dict[str, int]
    """Bytes by path relative to the folder, of a run that finished."""
    seconds: dict[str, float]
    """By part, of this run."""


def run_root(job: Job) -> Path:
    """The folder that a run of `job` is about: the build's, or the dataset's."""
    return job.folder.root if job.build else job.dataset_folder(job.datasets[0][1]).root


def run_fingerprint(job: Job) -> str:
    """Of everything asked: the recipes, the stages' versions, the base's files (size and mtime).

    Where this is too careful (a touched file), the run starts and receipts find everything done.
    """
    datasets = [
        {
            "asked": download_fingerprint(dataset),
            "caption": dataset.caption.model_dump(mode="json"),
            "tagger": dataset.tagger.model_dump(mode="json") if dataset.tagger else None,
        }
        for _, dataset in job.datasets
    ]
    # Which warnings are silenced is between the recipe and its reader; where work is done changes
    # nothing of it.
    build = job.build.model_dump(mode="json", exclude={"silence", "scale"}) if job.build else None
    base = [dataset.caption.tokenizer for _, dataset in job.datasets]
    if job.build is not None:
        base += [job.build.base.checkpoint, job.build.base.config, job.build.cache.vae]
    base += [Path(dataset.tagger.model) for _, dataset in job.datasets if dataset.tagger]
    return fingerprint(
        versions=VERSIONS,
        datasets=datasets,
        build=build,
        base=[_mark(path) for path in base if path is not None],
    )


def _mark(path: Path) -> list[list[str | int]]:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files if p.exists()]


def products(job: Job) -> list[Path]:
    """What a finished run must still have: final files, ledger, LoRAs, or a dataset's receipts."""
    root = run_root(job)
    if job.build is None:
        patterns = ["images/*.json*", "captions/*/receipt.json"]
    else:
        folder = job.folder
        patterns = ["rounds/*/lora.safetensors", f"rounds/*/{folder.round(1).checkpoint.name}"]
        patterns += [
            p.name for p in (folder.ledger, folder.final, folder.final_lora, folder.report)
        ]
    found = (path for pattern in patterns for path in root.glob(pattern))
    return sorted(file for path in found for file in files_of(path))


def write_run(
    root: Path,
    state: State,
    *,
    fingerprint: str,
    part: str | None = None,
    error: str | None = None,
    files: list[Path] | None = None,
    seconds: dict[str, float] | None = None,
) -> RunRecord:
    """Writes root/last_run.json. `files` are what a finished run made: absolute, under root."""
    record = RunRecord(
        state=state,
        part=part,
        error=error,
        at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        pid=os.getpid(),
        fingerprint=fingerprint,
        files={str(path.relative_to(root)): path.stat().st_size for path in files or []},
        seconds={name: round(value, 2) for name, value in (seconds or {}).items()},
    )
    write_text(root / RUN_FILE, record.model_dump_json(indent=2) + "\n")
    return record


def read_run(root: Path) -> RunRecord | None:
    """The record in `root`, or None where there is none or it cannot be read as one."""
    try:
        return RunRecord.model_validate_json((root / RUN_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def finished(root: Path, fingerprint: str) -> RunRecord | None:
    """The record in `root` if it proves that all of `fingerprint` was done and is still there."""
    record = read_run(root)
    if record is None or record.state != "finished" or record.fingerprint != fingerprint:
        return None
    for relative, size in record.files.items():
        path = root / relative
        if not path.is_file() or path.stat().st_size != size:
            return None
    return record
