"""What is on disk of a build's samples, as the columns of a grid: origin, round 1, round 2, …"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts.ledger import RoundRow
from pipeline.artefacts.receipts import Receipt, done, read_receipt
from pipeline.artefacts.workspace import BuildFolder
from pipeline.preview.sample import picture_paths


@dataclass(frozen=True)
class Column:
    """The pictures of one checkpoint."""

    number: int
    """The round; 0 is the origin."""
    title: str
    note: str
    """The strength that the round was merged at, or that it was left out."""
    pictures: tuple[Path, ...]
    """One per prompt."""

    @property
    def heading(self) -> str:
        return f"{self.title}\n{self.note}"


@dataclass(frozen=True)
class Sheet:
    """Prompts (rows) by checkpoints (columns)."""

    prompts: tuple[str, ...]
    columns: tuple[Column, ...]


def read_sheet(folder: BuildFolder, rows: Sequence[RoundRow], upto: int) -> Sheet:
    """The columns from the origin to round `upto` whose samples are on disk.

    The origin's receipt says which prompts and settings count; rounds sampled with others, or from
    weights that `rows` does not know, have no column. A round at strength 0 changed nothing: its
    column repeats the one before.
    """
    origin = _whole(folder.round(0).samples)
    if origin is None:
        return Sheet((), ())
    prompts = tuple(str(prompt) for prompt in origin.inputs["prompts"])
    pictures = tuple(picture_paths(folder.round(0).samples, len(prompts)))
    columns = [Column(0, "origin", "before training", pictures)]
    standing: tuple[Path, ...] | None = pictures
    for row in sorted(rows, key=lambda row: row.round):
        if row.round > upto:
            break
        if row.strength > 0:
            samples = folder.round(row.round).samples
            standing = (
                tuple(picture_paths(samples, len(prompts)))
                if _matches(_whole(samples), origin, row)
                else None
            )
        if standing is not None:
            columns.append(Column(row.round, f"round {row.round}", strength_note(row), standing))
    return Sheet(prompts, tuple(columns))


def strength_note(row: RoundRow) -> str:
    """What became of a round, in two words."""
    return f"strength {row.strength:.2f}" if row.strength > 0 else "left out"


def _whole(samples: Path) -> Receipt | None:
    receipt = read_receipt(samples)
    if receipt is None or "prompts" not in receipt.inputs:
        return None
    return done(samples, receipt.fingerprint)


def _matches(receipt: Receipt | None, origin: Receipt, row: RoundRow) -> bool:
    return receipt is not None and receipt.inputs == {
        **origin.inputs,
        "identity": row.checkpoint_sha256,
    }
