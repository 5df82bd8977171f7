"""Any round's checkpoint again, from the ledger, the origin and the rounds' LoRAs.

    urushi rebuild BUILD --round K [--strengths S1,S2,…] [--drop K]… [--out FILE]

Checkpoints need not be kept: the same links from the same origin give the same bytes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import merge
from pipeline.artefacts.identity import Identities
from pipeline.artefacts.ledger import Ledger, RoundRow
from pipeline.artefacts.strength import Strength, adds
from pipeline.artefacts.workspace import BuildFolder
from pipeline.errors import RequestError, UrushiError
from pipeline.rounds.chain import Link, Origin, sha256, write_chain


@dataclass(frozen=True)
class Plan:
    """What a rebuilt checkpoint is made of."""

    origin: Origin
    links: tuple[Link, ...]
    notes: tuple[str, ...]
    """Which rounds up to the one asked for are not in it, and why."""
    expected: str | None
    """sha256 of the round's own checkpoint; None where something else is asked for."""


@dataclass(frozen=True)
class Rebuilt:
    """A checkpoint that was written."""

    report: merge.MergeReport
    sha256: str
    """Of a diffusers folder as `chain.sha256` says."""


def plan(
    folder: BuildFolder,
    ledger: Ledger,
    identities: Identities,
    number: int,
    strengths: Sequence[float] | None = None,
    dropped: Sequence[int] = (),
    moved: Path | None = None,
    *,
    final: bool = False,
) -> Plan:
    """Decides what the checkpoint of round `number` is made of, and that all of it is there.

    Args:
        strengths: for each round that is merged, in order; None takes those of the ledger.
        dropped: rounds to leave out.
        moved: where the origin may lie if it is no longer where the ledger says.
        final: at the strengths of the final checkpoint, which a refit may have changed since.

    Raises:
        RequestError: no such round, nothing to merge, or another count of strengths.
        UrushiError: the origin or a LoRA is missing, or is not what it was.
    """
    rows = _rows(ledger, number, dropped)
    kept = [row for row in rows if row.decision != "rejected" and row.round not in dropped]
    if final and ledger.refit is not None:
        kept = [row for row in kept if adds(row.final_at)]
    if not kept:
        raise RequestError(
            f"No round up to {number} of {ledger.build} would be merged: what is asked for is the "
            f"origin itself, {ledger.origin}."
        )
    if strengths is not None and len(strengths) != len(kept):
        rounds = ", ".join(str(row.round) for row in kept)
        raise RequestError(
            f"{len(strengths)} strengths for {len(kept)} merged rounds ({rounds}). "
            "Give one for each of them, in order."
        )
    if strengths is None:
        chosen: list[Strength] = [row.final_at if final else row.merged_at for row in kept]
    else:
        chosen = [float(s) for s in strengths]
    origin = _origin(ledger, identities, moved)
    digests = _loras(folder, kept, identities)
    links = tuple(
        Link(row.round, folder.root / row.lora, digest, strength)
        for row, digest, strength in zip(kept, digests, chosen, strict=True)
    )
    made = [(link.round, link.strength) for link in links]
    notes = [
        f"round {row.round} was rejected, so it is left out"
        if row.decision == "rejected"
        else f"round {row.round} is left out, as asked"
        if row.round in dropped
        else f"round {row.round} is left out, since its final strength is 0"
        for row in rows
        if row not in kept
    ]
    return Plan(origin, links, tuple(notes), _expected(ledger, rows, made))


def _expected(
    ledger: Ledger, rows: Sequence[RoundRow], made: Sequence[tuple[int, Strength]]
) -> str | None:
    """sha256 of the round's checkpoint or of the final one, where either is of just that chain."""
    merged = [row for row in rows if row.decision != "rejected"]
    if made == [(row.round, row.merged_at) for row in merged]:
        return rows[-1].checkpoint_sha256
    last = [(row.round, row.final_at) for row in merged if adds(row.final_at)]
    return ledger.final_sha256 if rows[-1] == ledger.rounds[-1] and made == last else None


def rebuild(plan: Plan, out: Path, on_tensor: Callable[[int, int], None] | None = None) -> Rebuilt:
    """Writes the checkpoint that `plan` says to `out`, and compares it with the round's own.

    `on_tensor` is called with (tensors done, tensors in all).

    Raises:
        MergeError: `out` cannot be written, or is an input.
        UrushiError: it was written, and its bytes are not those of the round's checkpoint.
    """
    report = write_chain(plan.origin, plan.links, out, on_tensor)
    digest = sha256(out)
    if plan.expected and digest != plan.expected:
        raise UrushiError(
            f"{out} was written, but its sha256 {digest} is not that of the round's checkpoint, "
            f"{plan.expected}. Inputs are the same, so the sum was rounded otherwise: the build "
            "ran on another CPU or with other versions of urushi or torch."
        )
    return Rebuilt(report, digest)


def _rows(ledger: Ledger, number: int, dropped: Sequence[int]) -> list[RoundRow]:
    """The recorded rounds up to `number`."""
    recorded = [row.round for row in ledger.rounds]
    listed = ", ".join(map(str, recorded)) or "none yet"
    if number == 0:
        raise RequestError(
            f"Round 0 of {ledger.build} is the origin itself, {ledger.origin}. "
            f"Rounds that can be rebuilt: {listed}."
        )
    for asked, verb in ((number, "--round"), *((k, "--drop") for k in dropped)):
        if asked not in recorded:
            raise RequestError(
                f"{verb} {asked}: {ledger.build} has no such round. Recorded are: {listed}."
            )
    late = [k for k in dropped if k > number]
    if late:
        raise RequestError(
            f"--drop {late[0]} is after round {number}, of which it is no part. Leave it away."
        )
    return [row for row in ledger.rounds if row.round <= number]


def _origin(ledger: Ledger, identities: Identities, moved: Path | None) -> Origin:
    recorded = Path(ledger.origin)
    found = next((p for p in (recorded, moved) if p is not None and p.exists()), None)
    if found is None:
        raise UrushiError(
            f"The origin {recorded} is missing. Put it back, or name the build by a recipe whose "
            "[base].checkpoint says where it is now."
        )
    digest = identities.of(found)
    if digest != ledger.origin_blake3:
        raise UrushiError(
            f"The origin {found} is not the file that {ledger.build} started from: its BLAKE3 is "
            f"{digest}, and was {ledger.origin_blake3}. Put the original file back."
        )
    return Origin(ledger.build, found, digest)


def _loras(folder: BuildFolder, rows: Sequence[RoundRow], identities: Identities) -> list[str]:
    """BLAKE3 of each round's LoRA, once all of them are known to be what they were."""
    problems = []
    for row in rows:
        path = folder.root / row.lora
        if not path.is_file():
            problems.append(f"{path} of round {row.round} is missing")
        elif sha256(path) != row.sha256:
            problems.append(f"{path} of round {row.round} has changed since it was merged")
    if problems:
        raise UrushiError(
            f"{'; '.join(problems)}. Put back what the build made, or leave the round out (--drop)."
        )
    return [identities.of(folder.root / row.lora) for row in rows]
