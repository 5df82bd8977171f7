"""`urushi merge BASE LORA… --strength S… --out FILE`: one merge by hand, and its report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge import Addend, MergeReport
from merge.blocks import PRESETS
from merge.layers import Family
from merge.strength import Strength, described, parse_strength
from pipeline.artefacts.files import write_json
from pipeline.errors import RequestError
from urushi.identities import Remembered
from urushi.progress import Counted, Terminal
from urushi.table import size, table

MOST_ROWS = 8
LOSS_WORTH_A_ROW = 0.05


@dataclass(frozen=True)
class Options:
    """What a person may ask of a merge besides its inputs; see `urushi merge --help`."""

    dtype: str | None = None
    allow_unmatched: bool = False
    force: bool = False
    report: Path | None = None
    sha256: bool = False


def merge_files(
    base: Path,
    loras: Sequence[Path],
    strengths: Sequence[str],
    blocks: Sequence[str],
    out: Path,
    options: Options,
    workspace: Path,
) -> MergeReport:
    """Merges and prints what it did.

    Raises:
        RequestError: another count of strengths or block weights than of LoRAs.
        MergeError: a strength or a file is wrong, or the disk is full.
    """
    family = _family(base) if any(_is_preset(text) for text in (*strengths, *blocks)) else None
    factors = parse(strengths, blocks, len(loras), family)
    addends = [Addend(path, factor) for path, factor in zip(loras, factors, strict=True)]
    refuse_report(options.report, (base, *loras, out))
    from merge import merge

    terminal, known = Terminal(), Remembered(workspace, (base, *loras))
    with Counted(terminal, "merge", "tensors") as bar:
        report = merge(
            base,
            addends,
            out,
            dtype=options.dtype,
            on_tensor=bar.told,
            identities=known,
            allow_unmatched=options.allow_unmatched,
            force=options.force,
            stable_rank=options.report is not None,
        )
    known.keep({base: report.base, **dict(zip(loras, report.addends, strict=True))})
    print(render(report))
    hashes: dict[str, str] = {}
    if options.sha256:
        terminal.say(f"sha256 of {out} …")
        hashes = _sha256(out)
        print("\n".join(f"sha256 {digest}  {name}" for name, digest in hashes.items()))
    if options.report is not None:
        write_json(options.report, content(report, base, addends, hashes))
        print(f"report: {options.report}")
    return report


def _is_preset(text: str) -> bool:
    return any(text.strip().upper() in names for names in PRESETS.values())


def _family(base: Path) -> Family:
    from merge.layout import look

    return look(base).family


def refuse_report(report: Path | None, others: Sequence[Path]) -> None:
    """Before any work: a merge of minutes should not fail at its last file."""
    if report is None:
        return
    place = report.resolve()
    if place.is_dir() or any(place == other.resolve() for other in others):
        what = "a folder" if place.is_dir() else "an input or the output of this merge"
        raise RequestError(f"--report {report} is {what}. Name another file.")
    if not place.parent.is_dir():
        raise RequestError(f"There is no folder {place.parent} for --report {report}. Make it.")


def parse(
    strengths: Sequence[str], blocks: Sequence[str], count: int, family: Family | None
) -> list[float | Strength]:
    """--strength and --blocks as one factor for each of `count` LoRAs.

    ["0.7,0.9"] is two strengths, as ["0.7", "0.9"] is; ["unet=1,te=0.5"] is one.
    """
    texts = [t for text in strengths for t in ([text] if "=" in text else text.split(","))]
    factors = _for_each([parse_strength(text, family) for text in texts], count, "strengths")
    if not blocks:
        return factors
    weights = _for_each([parse_strength(text, family) for text in blocks], count, "block weights")
    return [_product(factor, weight) for factor, weight in zip(factors, weights, strict=True)]


def _for_each(factors: list[float | Strength], count: int, what: str) -> list[float | Strength]:
    if len(factors) == 1:
        return factors * count
    if len(factors) != count:
        raise RequestError(
            f"{len(factors)} {what} for {count} LoRAs. Give one for each, in their order, "
            "or one for all."
        )
    return factors


def _product(factor: float | Strength, weight: float | Strength) -> float | Strength:
    if isinstance(weight, Strength):
        return weight.times(factor)
    raise RequestError(
        f"--blocks {weight:g} is one number. Block weights are lists of 12, 17, 20 or 26 numbers, "
        "presets, or names such as IN04-07=1; one number for all is --strength."
    )


def _sha256(out: Path) -> dict[str, str]:
    """By file: the output, or the weight files of a folder."""
    from pipeline.rounds.chain import sha256

    files = sorted(out.rglob("*.safetensors")) if out.is_dir() else [out]
    return {str(path): sha256(path) for path in files}


def content(
    report: MergeReport, base: Path, addends: Sequence[Addend], sha256: dict[str, str]
) -> dict[str, Any]:
    """The report file: the merge's own, with what went in by path, hash and strength."""
    loras = [
        {"path": str(addend.path), "blake3": digest, "strength": described(addend.strength)}
        for addend, digest in zip(addends, report.addends, strict=True)
    ]
    inputs = {"base": {"path": str(base), "blake3": report.base}, "loras": loras}
    return {**report.to_json(), "inputs": inputs, "sha256": sha256}


def render(report: MergeReport) -> str:
    """The report for a person: counts, what the cast hides, and the layers that lose most."""
    moved = sum(row.delta_rms > 0 for row in report.matched)
    stayed = len(report.matched) - moved
    aside = f" ({stayed} more stay as they were)" if stayed else ""
    lines = [
        f"{report.out}: {report.tensors} tensors, {size(report.size)}",
        f"{moved} weights changed by {report.relative:.3%} of their norm{aside}; "
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
