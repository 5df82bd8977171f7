"""Rows of build.json into the table that `urushi demo` and `urushi status` show."""

from collections.abc import Mapping, Sequence
from typing import Any

from urushi.table import duration, table

HEADER = ("round", "LR", "steps", "strength", "held-out before", "after", "decision", "took")


def rounds_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a round; `rows` are RoundRow.model_dump() or a part of it."""
    return table(
        HEADER,
        [
            (
                str(row["round"]),
                f"{row['learning_rate']:.3g}",
                str(row["steps"]),
                f"{row['strength']:.3g}",
                f"{row['heldout_before']:.5f}",
                f"{row['heldout_after']:.5f}",
                str(row["decision"]),
                duration(row["seconds"]),
            )
            for row in rows
        ],
    )
