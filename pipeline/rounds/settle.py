"""The strengths that the final checkpoint is made with: the rounds' own, or all fitted together.

Fitted on the choosing half of the held-out pictures, told on the judging half, which may also
refuse them; with an anchor set, moved only as far as it allows. `urushi run` does it after the last
round of a build whose strengths are searched, `urushi reweigh BUILD` for any.
"""

import time
from collections.abc import Sequence
from dataclasses import replace

from pipeline.artefacts.chain import VERSIONS
from pipeline.artefacts.files import write_text
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job
from pipeline.artefacts.ledger import EncoderStrengths, Gain, Refitted
from pipeline.artefacts.receipts import read_receipt, write_receipt
from pipeline.artefacts.strength import Strength, adds, parted
from pipeline.progress import Progress
from pipeline.rounds.anchor import anchor_of
from pipeline.rounds.buckets import bucket_losses
from pipeline.rounds.chain import Link, origin_digest
from pipeline.rounds.evaluate import HeldOut
from pipeline.rounds.gate import Verdict, ceiling, judge, shrink
from pipeline.rounds.history import History
from pipeline.rounds.jury import Jury
from pipeline.rounds.parting import Parting
from pipeline.rounds.pictures import Pictures, pictures
from pipeline.rounds.refit import most_passes, refit
from pipeline.rounds.untouched import forget, untouched
from pipeline.train.counted import seed_of

RECEIPT = "refit-receipt.json"


def refitted(job: Job, history: History) -> Refitted | None:
    """What the refit of exactly these rounds came to, if it was made, and still is wanted: by the
    recipe, or by a person who asked for it with `urushi reweigh`."""
    if not history.links:
        return None
    wanted, remedy = _fingerprint(job, history), "delete it to fit the strengths again"
    receipt = untouched(job, job.folder.root, wanted, RECEIPT, remedy)
    if receipt is None or not (receipt.inputs["by_hand"] or job.recipe.rounds.refits):
        return None
    return Refitted.model_validate_json(job.folder.refit.read_bytes())


def final_links(job: Job, history: History) -> tuple[Link, ...]:
    """The chain of the final checkpoint; without rounds at strength 0, which add nothing."""
    found = refitted(job, history)
    if found is None:
        return history.links
    links = (
        replace(link, strength=strength)
        for link, strength in zip(history.links, found.final, strict=True)
    )
    kept = tuple(link for link in links if adds(link.strength))
    return kept or (replace(history.links[0], strength=0.0),)


def refit_strengths(
    job: Job, history: History, progress: Progress, *, by_hand: bool = False
) -> Refitted:
    """Fits the strengths of the merged rounds together, and writes refit.json and its receipt.

    With `by_hand` they stay, also where the recipe asks for none.
    """
    started, folder, wanted = time.monotonic(), job.folder, _fingerprint(job, history)
    before = read_receipt(folder.root, RECEIPT)
    found = refitted(job, history)
    if found is not None and (not by_hand or (before and before.inputs["by_hand"])):
        return found
    found = found or _fitted(job, history, progress)
    forget(folder.root, wanted, RECEIPT)
    write_text(folder.refit, found.model_dump_json(indent=1) + "\n")
    write_receipt(
        folder.root,
        "refit",
        wanted,
        inputs={"rounds": list(found.rounds), "by_hand": by_hand},
        outputs=[folder.refit],
        summary={"strengths": list(found.strengths), "kept": found.kept},
        seconds=time.monotonic() - started,
        name=RECEIPT,
    )
    return found


def _fingerprint(job: Job, history: History) -> str:
    anchor = anchor_of(job)
    return fingerprint(
        stage="refit",
        version=VERSIONS["refit"],
        origin=origin_digest(job),
        links=[[link.blake3, link.strength] for link in history.links],
        seen=[seen.split.model_dump(mode="json") for seen in _seen(job, history)],
        anchor=[anchor.split.model_dump(mode="json"), anchor.folders.text_fingerprint]
        if anchor
        else None,
        train=[job.recipe.train.precision, job.recipe.train.storage],
        budget=job.recipe.rounds.anchor_budget,
        live=history.live,
        **({"apart": True} if job.recipe.rounds.encoders_apart else {}),
    )


def _seen(job: Job, history: History) -> list[Pictures]:
    """The held-out pictures of every dataset that a merged round learnt from."""
    merged = {item.law.dataset: item.law for item in history.laid if item.choice.merged}
    return [pictures(job, law) for law in merged.values()]


def _fitted(job: Job, history: History, progress: Progress) -> Refitted:
    links, anchor = history.links, anchor_of(job)
    merged = [item.law for item in history.laid if item.choice.merged]
    parting = Parting(tuple(law.apart for law in merged))
    start = parting.flat([link.strength for link in links])
    held_out = HeldOut(job.recipe, None, [link.lora for link in links], live=history.live)
    with progress.bar("refit", most_passes(len(start)), "pass") as bar:
        jury = Jury(held_out, _seen(job, history), bar, parting.strengths)
        found = refit(jury.choosing_loss, jury.around, start)
        strengths, moved, forgets = found.strengths, 1.0, None
        if anchor is not None:
            forgets = _Anchor(held_out, anchor, parting, start, found.strengths)
            # The refit may raise the anchor loss as one more round might.
            most = ceiling(
                forgets(0.0), history.anchor_origin or 0.0, job.recipe.rounds.anchor_budget
            )
            moved = shrink(forgets, 1.0, max(most, forgets(0.0))).strength
            strengths = forgets.between(moved)
        before, after = jury.judged(start), jury.judged(strengths)
        origin = jury.judged((0.0,) * len(start))
    seed = seed_of(job.recipe.seed, "bootstrap", "refit")
    without, as_merged, as_fitted = (
        losses.mean(axis=1).tolist() for losses in (origin, before, after)
    )
    verdict = judge(as_merged, as_fitted, seed)
    unet, text = zip(
        *(
            _by_network(parting.strengths(flat))
            for flat in (start, found.strengths, strengths if verdict.improves else start)
        ),
        strict=True,
    )
    return Refitted(
        rounds=tuple(link.round for link in links),
        merged_at=unet[0],
        fitted=unet[1],
        strengths=unet[2],
        encoders=EncoderStrengths(merged_at=text[0], fitted=text[1], strengths=text[2])
        if any(parting.apart)
        else None,
        kept=verdict.improves,
        passes=found.passes,
        chosen_before=found.before,
        chosen_after=found.after,
        before=verdict.before,
        after=verdict.after,
        low=verdict.low,
        high=verdict.high,
        buckets=bucket_losses(before, after),
        origin=gain_of(judge(without, as_fitted, seed)),
        anchor_before=forgets(0.0) if forgets else None,
        anchor_after=forgets(moved) if forgets else None,
    )


def gain_of(verdict: Verdict) -> Gain:
    """As the ledger has it."""
    return Gain(before=verdict.before, after=verdict.after, low=verdict.low, high=verdict.high)


def _by_network(strengths: Sequence[Strength]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """All of the UNet, all of the text encoders."""
    pairs = [parted(strength) for strength in strengths]
    return tuple(unet for unet, _ in pairs), tuple(text for _, text in pairs)


class _Anchor:
    """The anchor loss on the way from one strength vector (0) to another (1)."""

    def __init__(
        self,
        held_out: HeldOut,
        anchor: Pictures,
        parting: Parting,
        start: tuple[float, ...],
        end: tuple[float, ...],
    ) -> None:
        self._held_out, self._anchor, self._parting = held_out, anchor, parting
        self._start, self._end = start, end
        self._known: dict[float, float] = {}

    def between(self, share: float) -> tuple[float, ...]:
        """The numbers of the strengths at `share` of the way."""
        ends = zip(self._start, self._end, strict=True)
        return tuple(round(first + share * (last - first), 4) for first, last in ends)

    def __call__(self, share: float) -> float:
        if share not in self._known:
            pictures, folders = self._anchor.split.held_out, self._anchor.folders
            strengths = self._parting.strengths(self.between(share))
            losses = self._held_out.losses(folders, pictures, strengths)
            self._known[share] = float(losses.mean())
        return self._known[share]
