"""What a change of rules does: captions as they would be now beside those that stand on disk.

urushi caption RECIPE --diff
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.artefacts.chain import CAPTIONS_FILE
from pipeline.artefacts.receipts import read_receipt
from pipeline.artefacts.records import CaptionRecord, read_records
from pipeline.artefacts.workspace import DatasetFolder


@dataclass(frozen=True)
class Changed:
    """One picture whose caption changes."""

    md5: str
    before: str
    after: str


@dataclass(frozen=True)
class Difference:
    """Between two sets of captions for one dataset."""

    captions: int
    """Now."""
    changed: tuple[Changed, ...]
    added: Counter[str]
    """What captions say that they did not, and in how many pictures."""
    removed: Counter[str]


def last_captions(folder: DatasetFolder) -> list[CaptionRecord] | None:
    """The captions written last, by whatever rules; None where there are none."""
    # By the clock of the disk: receipts tell time in seconds, and two rules are tried in one.
    receipts = [
        (path.stat().st_mtime_ns, path.parent)
        for path in folder.root.glob("captions/*/receipt.json")
        if read_receipt(path.parent) is not None
    ]
    if not receipts:
        return None
    return read_records(max(receipts)[1] / CAPTIONS_FILE, CaptionRecord)


def difference(before: Iterable[CaptionRecord], after: Iterable[CaptionRecord]) -> Difference:
    """What differs, picture by picture. One that only one side has counts as changed from or to
    nothing."""
    old = {record.md5: record.caption for record in before}
    new = {record.md5: record.caption for record in after}
    changed, added, removed = [], Counter[str](), Counter[str]()
    for md5 in sorted(old.keys() | new.keys()):
        was, now = old.get(md5, ""), new.get(md5, "")
        if was == now:
            continue
        changed.append(Changed(md5, was, now))
        said, says = set(was.split(", ")) - {""}, set(now.split(", ")) - {""}
        added.update(says - said)
        removed.update(said - says)
    return Difference(len(new), tuple(changed), added, removed)
