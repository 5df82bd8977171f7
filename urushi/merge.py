"""`urushi merge BASE LORA… --strength S… --out FILE`: one merge by hand, and its report."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from merge import Addend, MergeReport
from pipeline.errors import RequestError
from pipeline.progress import Bar, Progress
from urushi.progress import Terminal
from urushi.table import size, table

MOST_ROWS = 8
LOSS_WORTH_A_ROW = 0.05


def merge_files(
    base: Path, loras: Sequence[Path], strengths: Sequence[str], out: Path
) -> MergeReport:
    """Merges and prints what it did.

    Raises:
        RequestError: strengths that are no numbers, or another count than the LoRAs'.
        MergeError: a file is wrong, or the disk is full.
    """
    factors = parse(strengths, len(loras))
    addends = [Addend(path, factor) for path, factor in zip(loras, factors, strict=True)]
    from merge import merge

    with _Tensors(Terminal()) as tensors:
        report = merge(base, addends, out, on_tensor=tensors.told)
    print(render(report))
    return report


class _Tensors:
    """A bar over a merge's tensors, opened once it is known how many there are."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bar: Bar | None = None
        self._done = 0

    def told(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = self._open.enter_context(self._progress.bar("merge", total, "tensors"))
        self._bar.advance(done - self._done)
        self._done = done

    def __enter__(self) -> Self:
        self._open = ExitStack()
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.close()


def parse(strengths: Sequence[str], count: int) -> list[float]:
    """["0.7,0.9"] or ["0.7", "0.9"] as numbers, one for each of `count` LoRAs."""
    texts = [text.strip() for part in strengths for text in part.split(",")]
    numbers = []
    for text in texts:
        try:
            numbers.append(float(text))
        except ValueError:
            raise RequestError(f"--strength {text!r} is not a number.") from None
        if not math.isfinite(numbers[-1]):
            raise RequestError(f"--strength {text!r} is not a finite number.")
    if len(numbers) == 1:
        return numbers * count
    if len(numbers) != count:
        raise RequestError(
            f"{len(numbers)} strengths for {count} LoRAs. Give one for each, in their order, "
            "or one for all."
        )
    return numbers


def render(report: MergeReport) -> str:
    """The report for a person: counts, what the cast hides, and the layers that lose most."""
    lines = [
        f"{report.out}: {report.tensors} tensors, {size(report.size)}",
        f"{len(report.matched)} weights changed by {report.relative:.3%} of their norm; "
        f"the cast hides {report.cast_loss:.2%} of the last LoRA.",
        *(f"warning: {warning}" for warning in report.warnings),
    ]
    if report.unmatched:
        lines.append(f"{len(report.unmatched)} modules found no weight:")
        lines += [f"  {module}" for module in report.unmatched[:MOST_ROWS]]
        if len(report.unmatched) > MOST_ROWS:
            lines.append(f"  and {len(report.unmatched) - MOST_ROWS} more")
    worst = sorted(report.matched, key=lambda row: -row.cast_loss)[:MOST_ROWS]
    worst = [row for row in worst if row.cast_loss > LOSS_WORTH_A_ROW]
    if worst:
        lines.append("Weights where the cast hides most:")
        rows = [(r.key, r.dtype, f"{r.last_rms:.2e}", f"{r.cast_loss:.1%}") for r in worst]
        lines.append(table(("weight", "dtype", "delta rms", "hidden"), rows))
    return "\n".join(lines)
