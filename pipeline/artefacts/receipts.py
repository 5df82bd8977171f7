"""Receipts: the proof that a stage or a shard is done, written last, atomically.

Done means a receipt whose fingerprint matches and whose outputs are there at their recorded sizes;
never merely that some file exists.
"""

import os
import stat
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artefacts.files import read_json, write_json
from pipeline.artefacts.identity import digest_file
from pipeline.errors import UrushiError

NAME = "receipt.json"


@dataclass(frozen=True)
class Output:
    """A file that a stage made: size in bytes and BLAKE3."""

    bytes: int
    blake3: str


@dataclass(frozen=True)
class Receipt:
    """What was done, from what, and what came out: paths relative to the receipt's folder."""

    stage: str
    fingerprint: str
    inputs: dict[str, Any]
    outputs: dict[str, Output]
    summary: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    finished_at: str = ""


def write_receipt(
    folder: Path,
    stage: str,
    fingerprint: str,
    *,
    inputs: dict[str, Any],
    outputs: list[Path],
    summary: dict[str, Any] | None = None,
    seconds: float = 0.0,
    name: str = NAME,
) -> Receipt:
    """Writes folder/name for `outputs`: absolute paths under `folder`, all of them on disk."""
    receipt = Receipt(
        stage=stage,
        fingerprint=fingerprint,
        inputs=inputs,
        outputs={
            str(p.relative_to(folder)): Output(p.stat().st_size, digest_file(p)) for p in outputs
        },
        summary=summary or {},
        seconds=round(seconds, 3),
        finished_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    write_json(folder / name, asdict(receipt))
    return receipt


def read_receipt(folder: Path, name: str = NAME) -> Receipt | None:
    """The receipt in `folder`, or None where there is none or it cannot be read as one."""
    path = folder / name
    if not path.exists():
        return None
    try:
        table = read_json(path)
        outputs = {k: Output(**v) for k, v in table.pop("outputs").items()}
        return Receipt(outputs=outputs, **table)
    except (UrushiError, TypeError, KeyError, AttributeError):
        return None


def done(folder: Path, fingerprint: str, name: str = NAME) -> Receipt | None:
    """The receipt in `folder` if it proves `fingerprint` and its outputs are there, else None."""
    receipt = read_receipt(folder, name)
    if receipt is None or receipt.fingerprint != fingerprint:
        return None
    return receipt if lost(folder, receipt) is None else None


def lost(folder: Path, receipt: Receipt) -> str | None:
    """The first output of `receipt` that is not in `folder` any more at its size; None: all are."""
    for relative, output in receipt.outputs.items():
        # One question a file, and no Path: of 50,000 pictures either would be most of the time.
        try:
            found = os.stat(f"{folder}/{relative}")
        except OSError:
            return relative
        if not stat.S_ISREG(found.st_mode) or found.st_size != output.bytes:
            return relative
    return None
