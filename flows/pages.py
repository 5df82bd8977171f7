"""A round's row, its grid and errors into the Markdown and the table that Prefect shows."""

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from pipeline.artefacts.job import Job
from pipeline.artefacts.ledger import Ledger, RoundRow, read_ledger
from pipeline.artefacts.runs import run_root
from pipeline.artefacts.workspace import BuildFolder
from pipeline.errors import DiskFullError, RequestError, UrushiError
from pipeline.preview import wording

PICTURE_BYTES = 200_000
"""Of a grid inside a page: it lies in Prefect's database, once for every version."""
PICTURE_WIDTH = 1200
"""Pixels; what a page shows."""


def round_page(folder: BuildFolder, ledger: Ledger, row: RoundRow) -> str:
    """The page of one finished round."""
    name, number = ledger.build, row.round
    grid = folder.round(number).grid
    picture = (
        f"![The origin and every round so far, one prompt a row]({data_uri(grid.read_bytes())})"
        if grid.exists()
        else "There is no grid: the round was left out, or [preview] has no prompts."
    )
    facts = (
        ("learning rate", wording.rate(row.learning_rate)),
        ("steps", f"{row.steps:,}, {row.attempts} attempt{'s' if row.attempts > 1 else ''}"),
        ("strength", f"{row.strength:.3g}"),
        (
            "held-out loss",
            f"{wording.loss(row.heldout_before)} → {wording.loss(row.heldout_after)}",
        ),
        (
            "gain, 95 % range",
            f"{wording.signed(row.improvement_low)} to {wording.signed(row.improvement_high)}",
        ),
        ("training loss", wording.loss(row.train_loss)),
        ("rounded away by the cast", wording.share(row.cast_loss)),
        ("time", wording.duration(row.seconds)),
        ("LoRA", f"`{row.lora}`, sha256 `{row.sha256[:12]}`"),
        ("checkpoint", f"sha256 `{row.checkpoint_sha256[:12]}`"),
    )
    lines = [
        f"# {name}, round {number}: {row.decision}",
        "",
        _verdict(ledger, row),
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {what} | {value} |" for what, value in facts),
        "",
        picture,
        "",
        "In full size: " + f"`{grid}`" if grid.exists() else "",
        "",
        *_to_type(ledger, row),
    ]
    return "\n".join(lines)


def _to_type(ledger: Ledger, row: RoundRow) -> list[str]:
    name, number = ledger.build, row.round
    return [
        f"    urushi approve {name} continue | redo --lr-scale 0.5 | stop     (where it asks)",
        f"    urushi rebuild {name} --round {number}",
        "    urushi status",
    ]


def _verdict(ledger: Ledger, row: RoundRow) -> str:
    if row.strength <= 0:
        return "This round did not help and was left out; what was merged before stands."
    fell = 1 - row.heldout_after / row.heldout_before if row.heldout_before else 0.0
    since = 1 - row.heldout_after / ledger.heldout_origin if ledger.heldout_origin else 0.0
    return (
        f"The held-out loss fell by **{fell:.1%}** in this round, "
        f"and is {since:.1%} under the origin's."
    )


def history(ledger: Ledger) -> list[dict[str, Any]]:
    """One row a round, with numbers as a person writes them: Prefect shows every digit."""
    return [
        {
            "round": row.round,
            "learning rate": wording.rate(row.learning_rate),
            "steps": row.steps,
            "strength": round(row.strength, 3),
            "held-out before": wording.loss(row.heldout_before),
            "held-out after": wording.loss(row.heldout_after),
            "decision": row.decision,
            "time": wording.duration(row.seconds),
        }
        for row in ledger.rounds
    ]


def compare_page(folders: Sequence[BuildFolder]) -> str:
    """Several builds beside one another: figures of their last rounds, and their last grids."""
    lines = [
        "| build | rounds | held-out before | after | fell by | status |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    grids = []
    for folder in folders:
        ledger = read_ledger(folder.ledger)
        merged = [row for row in ledger.rounds if row.strength > 0]
        origin = ledger.heldout_origin
        after = merged[-1].heldout_after if merged else origin
        fell = wording.share(1 - after / origin) if origin and after is not None else "unknown"
        lines.append(
            f"| {ledger.build} | {len(merged)} of {len(ledger.rounds)} "
            f"| {wording.loss(origin) if origin else ''} "
            f"| {wording.loss(after) if after is not None else ''} | {fell} | {ledger.status} |"
        )
        grid = folder.round(merged[-1].round).grid if merged else None
        if grid is not None and grid.exists():
            grids += ["", f"## {ledger.build}", "", f"![grid]({data_uri(grid.read_bytes())})"]
    return "\n".join([*lines, *grids])


def trouble_page(job: Job, error: Exception) -> str:
    """What went wrong, and what to do. Our own errors say both themselves."""
    name = run_root(job).name
    ours = isinstance(error, UrushiError)
    told = str(error) if ours else f"{type(error).__name__}: {error}"
    if isinstance(error, DiskFullError):
        advice = "Free some space. Nothing that was finished is lost."
    elif isinstance(error, RequestError):
        advice = f"Put it right in `{job.recipe_path}` or in the file that is named above."
    elif ours:
        advice = "The message says what it is about. Nothing that was finished is lost."
    else:
        advice = "This is a defect of urushi. Please report it with the traceback in the logs."
    return "\n".join(
        [
            f"# {name} ended with an error",
            "",
            told,
            "",
            advice,
            "",
            "Then start it again: here with *Run* on its deployment, or by hand. What is done "
            "stays done.",
            "",
            f"    urushi run {job.recipe_path} --workspace {job.workspace.root}",
        ]
    )


def data_uri(png: bytes) -> str:
    """A picture as a JPEG of at most PICTURE_BYTES, as it stands inside a page."""
    with Image.open(io.BytesIO(png)) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH * 8))
    quality = 85
    while True:
        packed = io.BytesIO()
        picture.save(packed, "JPEG", quality=quality, optimize=True)
        if packed.tell() <= PICTURE_BYTES:
            return f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}"
        if quality > 60:
            quality -= 10
        else:
            picture = picture.resize(
                (max(1, picture.width * 3 // 4), max(1, picture.height * 3 // 4))
            )
