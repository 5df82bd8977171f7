"""LoRA tools of merge/ for a person: runs one, with a bar, and prints what it did."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from merge import Addend, concat
from merge.convert import convert
from merge.errors import listed
from merge.extract import ExtractReport, extract
from merge.families import NAMES
from merge.info import LoraInfo, info
from merge.layers import Family, Network
from merge.lora import open_loras
from merge.lora_layout import Layout
from merge.lora_metadata import family_of
from merge.resize import ResizeReport, ThinLayer, resize
from merge.thin import Cut
from pipeline.errors import RequestError
from urushi.identities import Remembered
from urushi.merge import parse
from urushi.progress import Counted, Terminal
from urushi.table import size, table

MOST_ROWS = 8
NETWORKS: dict[str, tuple[Network, ...]] = {
    "unet": ("unet",),
    "te": ("te1", "te2"),
    "te1": ("te1",),
    "te2": ("te2",),
}


@dataclass(frozen=True)
class Kept:
    """What a person wants kept of each layer; see `urushi lora resize --help`."""

    rank: int | None
    energy: float | None
    ratio: float | None
    conv_rank: int | None

    def cut(self) -> Cut:
        """Raises RequestError: nothing was said. Raises MergeError: a number out of its range."""
        if self.rank is None and self.energy is None and self.ratio is None:
            raise RequestError("Say what to keep: --rank R, --energy E or --sv-ratio X.")
        return Cut(self.rank, self.energy, self.ratio)


def print_info(lora: Path, as_json: bool, workspace: Path) -> None:
    """Raises MergeError: not a LoRA."""
    known = Remembered(workspace, [lora])
    found = info(lora, identities=known)
    known.keep({lora: found.blake3})
    print(as_text(found) if as_json else render_info(found))


def resize_file(
    lora: Path, out: Path, kept: Kept, dtype: str | None, as_json: bool, workspace: Path
) -> None:
    """Raises RequestError, MergeError: see `merge.resize.resize`."""
    cut, known = kept.cut(), Remembered(workspace, [lora])
    with Counted(Terminal(), "resize", "modules") as bar:
        report = resize(
            lora,
            out,
            cut,
            conv_rank=kept.conv_rank,
            dtype=dtype,
            on_module=bar.told,
            identities=known,
        )
    known.keep({lora: report.lora})
    print(as_text(report) if as_json else render_resize(report))


def extract_files(
    tuned: Path,
    base: Path,
    out: Path,
    kept: Kept,
    networks: str,
    to: Layout,
    dtype: str,
    as_json: bool,
    workspace: Path,
) -> None:
    """Raises RequestError, MergeError: see `merge.extract.extract`."""
    cut, known = kept.cut(), Remembered(workspace, [tuned, base])
    with Counted(Terminal(), "extract", "layers") as bar:
        report = extract(
            tuned,
            base,
            out,
            cut,
            conv_rank=kept.conv_rank,
            networks=_networks(networks),
            layout=to,
            dtype=dtype,
            on_layer=bar.told,
            identities=known,
        )
    known.keep({tuned: report.tuned, base: report.base})
    print(as_text(report) if as_json else render_extract(report))


def concat_files(
    loras: Sequence[Path],
    strengths: Sequence[str],
    blocks: Sequence[str],
    out: Path,
    workspace: Path,
) -> None:
    """Raises RequestError, MergeError: see `merge.concat`."""
    with open_loras(loras) as files:
        families = [family for family in map(family_of, files) if family is not None]
    factors = parse(strengths, blocks, len(loras), families[0] if families else None)
    known = Remembered(workspace, loras)
    addends = [Addend(path, factor) for path, factor in zip(loras, factors, strict=True)]
    hashes = concat(addends, out, identities=known)
    known.keep(dict(zip(loras, hashes, strict=True)))
    print(f"{out}: {size(out.stat().st_size)}, the sum of {len(loras)} LoRAs")


def convert_file(lora: Path, out: Path, to: Layout, family: Family | None, workspace: Path) -> None:
    """Raises MergeError: see `merge.convert.convert`."""
    known = Remembered(workspace, [lora])
    report = convert(lora, out, to, family=family, identities=known)
    known.keep({lora: report.lora})
    old, new = next(iter(report.names.items()))
    print(f"{out}: {size(report.size)}, {NAMES[report.family]}, {len(report.names)} modules")
    print(f"{old} is now {new}" if old != new else "All names stay as they were.")


def _networks(text: str) -> tuple[Network, ...]:
    found: dict[Network, None] = {}
    for name in text.split(","):
        if name.strip() not in NETWORKS:
            raise RequestError(f"--networks {name!r} is not one of {', '.join(NETWORKS)}.")
        found |= dict.fromkeys(NETWORKS[name.strip()])
    return tuple(found)


def render_info(found: LoraInfo) -> str:
    """A LoRA file for a person."""
    family = "family not said" if found.family is None else NAMES[found.family]
    forms = ", ".join(f"{count} {form}" for form, count in found.forms.items())
    lines = [
        f"{found.path}: {family}, {found.writer} layout, {size(found.size)}",
        f"blake3 {found.blake3}",
        f"modules: {forms}",
    ]
    for title, counts in (
        ("networks", found.networks),
        ("kernels", found.kinds),
        ("ranks", found.ranks),
        ("alphas", found.alphas),
        ("dtypes", found.dtypes),
    ):
        if counts:
            lines.append(f"{title}: {_counts(counts)}")
    if found.norms:
        lines.append("norms: " + ", ".join(f"{n} {v:.4g}" for n, v in found.norms.items()))
        lines.append("Largest deltas at strength 1:")
        rows = [(name, f"{rms:.2e}") for name, rms in found.largest]
        lines.append(table(("module", "rms"), rows))
    lines += [f"{key}: {_short(value)}" for key, value in found.metadata.items()]
    return "\n".join(lines)


def render_resize(report: ResizeReport) -> str:
    """What a resize did, and the layers that lose most."""
    return "\n".join(
        [
            f"{report.out}: {size(report.size)}, {len(report.layers)} modules",
            f"{report.share:.2%} of the norm kept, {report.share**2:.2%} of the energy; "
            f"{_ranks(report.layers)}.",
            *_worst(report.layers),
        ]
    )


def render_extract(report: ExtractReport) -> str:
    """What an extraction found, what it kept of it, and what it left."""
    lines = [
        f"{report.out}: {size(report.size)}, {len(report.layers)} layers",
        f"{report.share:.2%} of the difference kept; {_ranks(report.layers)}.",
    ]
    for reason, count in Counter(left.reason for left in report.left).items():
        largest = max(
            (left for left in report.left if left.reason == reason), key=lambda left: left.norm
        )
        lines.append(
            f"{count} weights left out ({REASONS[reason]}), the largest {largest.name} "
            f"(norm {largest.norm:.3g})."
        )
    return "\n".join([*lines, *_worst(report.layers)])


REASONS = {
    "rounding": "their difference is no more than the rounding of the files",
    "no LoRA layer": "programs look for no LoRA there",
    "not asked for": "not asked for",
}


def _ranks(layers: Sequence[ThinLayer]) -> str:
    ranks = sorted(row.rank for row in layers)
    if ranks[0] == ranks[-1]:
        return f"rank {ranks[0]}"
    return f"ranks {ranks[0]} to {ranks[-1]}, half of them up to {ranks[len(ranks) // 2]}"


def _worst(layers: Sequence[ThinLayer]) -> list[str]:
    worst = sorted(layers, key=lambda row: row.share)[:MOST_ROWS]
    rows = [
        (row.name, f"{row.rank}", f"{row.share:.1%}", f"{row.norm:.3g}")
        for row in worst
        if row.share < 0.9995
    ]
    if not rows:
        return []
    return ["Layers that keep least:", table(("layer", "rank", "kept", "norm"), rows)]


def _counts(counts: Any) -> str:
    shown = [f"{value:g}" if isinstance(value, float) else f"{value}" for value in counts]
    if len(shown) == 1:
        return shown[0]
    found = [f"{name} ({count})" for name, count in zip(shown, counts.values(), strict=True)]
    return listed(found, MOST_ROWS)


def _short(value: str, most: int = 100) -> str:
    return value if len(value) <= most else f"{value[:most]}…"


def as_text(record: Any) -> str:
    """A report for a program."""
    return json.dumps(asdict(record), indent=1, default=str, ensure_ascii=False)
