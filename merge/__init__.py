"""Adds LoRAs to Stable Diffusion checkpoints, exactly: float32 sum, one cast, streaming, atomic.

    from merge import Addend, merge
    report = merge(base, [Addend(lora, 0.8)], out)

Stands alone on torch, and blake3 for hashes; imports no other room. What needs torch is imported
when it is first asked for, so that catching MergeError costs nothing.
"""

from typing import TYPE_CHECKING, Any

from merge.errors import MergeError
from merge.records import Addend, LayerReport, MergeReport
from merge.strength import Strength, parse_strength

if TYPE_CHECKING:
    from merge.ldm import Components, from_ldm, to_ldm
    from merge.run import merge
    from merge.stack import concat

__all__ = [
    "Addend",
    "Components",
    "LayerReport",
    "MergeError",
    "MergeReport",
    "Strength",
    "concat",
    "from_ldm",
    "merge",
    "parse_strength",
    "to_ldm",
]


def __getattr__(name: str) -> Any:
    if name == "merge":
        from merge.run import merge

        return merge
    if name == "concat":
        from merge.stack import concat

        return concat
    if name in ("Components", "from_ldm", "to_ldm"):
        from merge import ldm

        return getattr(ldm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
