"""What is on disk of a build's samples, as the columns of a grid: origin, round 1, round 2, …"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts.ledger import Ledger, RoundRow
from pipeline.artefacts.receipts import Receipt, done, read_receipt
from pipeline.artefacts.workspace import BuildFolder
from pipeline.preview import wording
from pipeline.preview.sample import picture_paths
from pipeline.preview.standing import fitted
from pipeline.recipe.preview import Preview
from pipeline.recipe.shots import Shot, shots


@dataclass(frozen=True)
class Column:
    """The pictures of one checkpoint."""

    number: int
    """The round; 0 is the origin, one more than the last round the final checkpoint."""
    title: str
    note: str
    """The strength that the round was merged at, or that it was left out."""
    pictures: tuple[Path, ...]
    """One per shot."""
    laid: bool = True
    """False for a round that was left out: its pictures are those of what stood before."""

    @property
    def heading(self) -> str:
        return f"{self.title}\n{self.note}"


@dataclass(frozen=True)
class Sheet:
    """Shots (rows) by checkpoints (columns)."""

    shots: tuple[Shot, ...]
    columns: tuple[Column, ...]

    def labels(self) -> tuple[str, ...]:
        """A row's words: its prompt, and on a line of its own its seed where prompts repeat."""
        several = len({shot.prompt for shot in self.shots}) < len(self.shots)
        return tuple(f"{s.prompt}\nseed {s.seed}" if several else s.prompt for s in self.shots)

    def round_columns(self) -> tuple[Column, ...]:
        """Of the last column's own grid: the origin, what stood before it, and itself."""
        laid = [column for column in self.columns[1:-1] if column.laid]
        return tuple(dict.fromkeys((self.columns[0], *laid[-1:], self.columns[-1])))


def read_sheet(folder: BuildFolder, rows: Sequence[RoundRow], upto: int) -> Sheet:
    """The columns from the origin to round `upto` whose samples are on disk.

    The origin's receipt says which prompts and settings count; rounds sampled with others, or from
    weights that `rows` does not know, have no column. A round at strength 0 changed nothing: its
    column repeats the one before.
    """
    origin = _whole(folder.round(0).samples)
    if origin is None:
        return Sheet((), ())
    kept = {name: origin.inputs[name] for name in ("prompts", "seed", "seeds")}
    wanted = shots(Preview.model_validate(kept))
    pictures = tuple(picture_paths(folder.round(0).samples, len(wanted)))
    columns = [Column(0, "origin", "before training", pictures)]
    standing: tuple[Path, ...] | None = pictures
    for row in sorted(rows, key=lambda row: row.round):
        if row.round > upto:
            break
        if row.strength > 0:
            samples = folder.round(row.round).samples
            standing = (
                tuple(picture_paths(samples, len(wanted)))
                if _is_of(_whole(samples), origin, row.checkpoint_sha256)
                else None
            )
        if standing is not None:
            title, laid = f"round {row.round}", row.strength > 0
            columns.append(Column(row.round, title, strength_note(row), standing, laid))
    return Sheet(wanted, tuple(columns))


def with_final(sheet: Sheet, folder: BuildFolder, ledger: Ledger) -> Sheet:
    """The sheet and a last column of the final checkpoint, if that is no round's and is drawn."""
    identity, origin = final_identity(ledger), _whole(folder.round(0).samples)
    if not sheet.columns or identity is None or origin is None:
        return sheet
    if not _is_of(_whole(folder.final_samples), origin, identity):
        return sheet
    pictures = tuple(picture_paths(folder.final_samples, len(sheet.shots)))
    number = max(row.round for row in ledger.rounds) + 1
    last = Column(number, "final", "all strengths fitted", pictures)
    return Sheet(sheet.shots, (*sheet.columns, last))


def final_identity(ledger: Ledger) -> str | None:
    """sha256 of the final checkpoint where strengths were fitted together; None where it is the
    last merged round's."""
    return ledger.final_sha256 if fitted(ledger) is not None else None


def strength_note(row: RoundRow) -> str:
    """What became of a round, in two words."""
    return f"strength {wording.strength(row.merged_at)}" if row.strength > 0 else "left out"


def _whole(samples: Path) -> Receipt | None:
    receipt = read_receipt(samples)
    if receipt is None or "seeds" not in receipt.inputs:
        return None
    return done(samples, receipt.fingerprint)


def _is_of(receipt: Receipt | None, origin: Receipt, identity: str) -> bool:
    """Whether the samples are of these weights, drawn as the origin's were."""
    return receipt is not None and receipt.inputs == {**origin.inputs, "identity": identity}
