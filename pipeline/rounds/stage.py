"""The parts of a build in order: for each round train, strength, merge, preview; then finish.

    urushi run RECIPE        all of them
    urushi train RECIPE      the next round's LoRA by hand

Each part looks at receipts first, does what is missing and returns; so any of them can be killed
and called again.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import tomli_w

import merge
from pipeline.artefacts.files import files_of, remove, share, write_text
from pipeline.artefacts.gpus import turn
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.ledger import read_ledger, write_ledger
from pipeline.artefacts.locks import locked
from pipeline.artefacts.receipts import done, write_receipt
from pipeline.errors import GateStopped, RequestError
from pipeline.preview.stage import make_report, make_round_grid
from pipeline.progress import Progress
from pipeline.recipe import RoundLaw
from pipeline.rounds.chain import Link, lay, was_laid
from pipeline.rounds.choice import Choice, choose, chosen
from pipeline.rounds.ledger import Laid, Status, gather
from pipeline.rounds.training import training
from pipeline.train.round import train_round

_WITHOUT_GPU = ("merge",)
"""Parts that need not wait for the card."""
STOP_AFTER = 2
"""Rounds rejected in a row after which a build stops."""


@dataclass(frozen=True)
class Part:
    """One resumable part of a build."""

    name: str
    run: Callable[[Job, Progress], Outcome]


def parts(job: Job) -> tuple[Part, ...]:
    """Every part of the job's build, in order."""
    listed: list[Part] = []
    for law in job.recipe.law():
        for name, run in _ROUND_PARTS:
            listed.append(Part(f"round-{law.number:02d}-{name}", _locked(name, run, law)))
    listed.append(Part("finish", _finish_locked))
    return tuple(listed)


def train(job: Job, progress: Progress) -> Outcome:
    """Trains the LoRA of the first round that has none yet: `urushi train`."""
    with locked(job.folder.root):
        for law in job.recipe.law():
            before = _history(job, law.number - 1)
            if before.stopped or before.missing is not None:
                break
            if chosen(job, law, before.links) is None:
                return _train(job, law, progress)
    return Outcome("train", True, "every round's LoRA is trained")


RoundPart = Callable[[Job, RoundLaw, Progress], Outcome]


def _locked(name: str, run: RoundPart, law: RoundLaw) -> Callable[[Job, Progress], Outcome]:
    def part(job: Job, progress: Progress) -> Outcome:
        with locked(job.folder.root):
            _write_recipe(job)
            stopped = _history(job, law.number - 1).stopped
            if stopped is not None:
                return Outcome(name, True, f"the gate stopped the build after round {stopped}")
            with nullcontext() if name in _WITHOUT_GPU else turn(progress.say):
                return run(job, law, progress)

    return part


def _finish_locked(job: Job, progress: Progress) -> Outcome:
    with locked(job.folder.root):
        return _finish(job, progress)


@dataclass(frozen=True)
class _History:
    """What the rounds up to some number came to."""

    links: tuple[Link, ...]
    """The merged ones."""
    laid: tuple[Laid, ...]
    """All of them."""
    missing: int | None
    """The first round that has no choice yet."""
    stopped: int | None
    """The round after which the gate stopped the build."""


def _history(job: Job, last: int) -> _History:
    links: tuple[Link, ...] = ()
    laid: list[Laid] = []
    rejected = 0
    for law in job.recipe.law()[:last]:
        found = chosen(job, law, links)
        if found is None:
            return _History(links, tuple(laid), law.number, None)
        choice, receipt = found
        if choice.merged:
            lora = job.folder.round(law.number).lora
            digest = receipt.outputs[lora.name].blake3
            links = (*links, Link(law.number, lora, digest, choice.strength))
        laid.append(Laid(law, choice, receipt, links))
        rejected = 0 if choice.merged else rejected + 1
        if rejected == STOP_AFTER and law.number < len(job.recipe.law()):
            return _History(links, tuple(laid), None, law.number)
    return _History(links, tuple(laid), None, None)


def _base(job: Job, number: int, progress: Progress) -> tuple[tuple[Link, ...], Path | None]:
    """The links before round `number` and the checkpoint that they make (None: the origin)."""
    before = _history(job, number - 1)
    if before.missing is not None:
        raise RequestError(
            f"Round {number} starts from round {before.missing}, which is not finished. "
            "`urushi run` does all rounds in order."
        )
    if not before.links:
        return (), None
    lay(job, before.links, progress)
    return before.links, job.folder.round(before.links[-1].round).checkpoint


def _train(job: Job, law: RoundLaw, progress: Progress) -> Outcome:
    links = _history(job, law.number - 1).links
    if chosen(job, law, links) is not None:
        return Outcome("train", True, "already done")
    links, checkpoint = _base(job, law.number, progress)
    plan = training(job, law, links, checkpoint, 1)
    already = done(plan.folder, plan.fingerprint) is not None
    receipt = train_round(job.recipe, plan, progress)
    share(plan.folder / "lora.safetensors", job.folder.round(law.number).lora)
    return Outcome(
        "train",
        already,
        f"round {law.number}: {receipt.summary['steps']} steps at {plan.learning_rate:g}, "
        f"loss {receipt.summary['train_loss']:.4f}",
    )


def _strength(job: Job, law: RoundLaw, progress: Progress) -> Outcome:
    links = _history(job, law.number - 1).links
    found = chosen(job, law, links)
    if found is not None:
        return Outcome("strength", True, _sentence(found[0]))
    links, checkpoint = _base(job, law.number, progress)
    choice = choose(job, law, links, checkpoint, progress)
    return Outcome("strength", False, _sentence(choice))


def _sentence(choice: Choice) -> str:
    counts = choice.counts
    return (
        f"round {choice.round}: {choice.decision}, strength {choice.strength:g}, "
        f"held-out {counts.before:.5f} -> {counts.after:.5f}"
    )


def _merge(job: Job, law: RoundLaw, progress: Progress) -> Outcome:
    history = _history(job, law.number)
    if history.missing is not None:
        raise RequestError(f"Round {law.number} has no strength yet. `urushi run` chooses it.")
    if not history.laid[-1].choice.merged:
        _write_ledger(job, "running")  # No merge follows that would write it.
        return Outcome("merge", True, f"round {law.number} was rejected: nothing to merge")
    links = history.links
    later = job.folder.round(law.number + 1).held_out.exists()
    if was_laid(job, links) and (
        job.folder.round(law.number).checkpoint.exists()
        or (later and job.recipe.rounds.keep == "last")
    ):
        return Outcome("merge", True, "already done")
    receipt = lay(job, links, progress)
    if job.recipe.rounds.keep == "last":
        for link in links[:-1]:
            remove(job.folder.round(link.round).checkpoint)
    _write_ledger(job, "running")
    return Outcome(
        "merge",
        False,
        f"round {law.number}: {receipt.summary['layers']} layers, "
        f"{receipt.summary['cast_loss']:.2%} of the delta lost by the cast",
    )


def _preview(job: Job, law: RoundLaw, progress: Progress) -> Outcome:
    history = _history(job, law.number)
    if not history.laid[-1].choice.merged:
        return Outcome("preview", True, f"round {law.number} was rejected: nothing to show")
    grid = job.folder.round(law.number).grid
    before = grid.stat().st_mtime_ns if grid.exists() else None
    rows = gather(job, history.laid, "running", final=False).rounds
    made = make_round_grid(job, rows, law.number, progress)
    if made is None:
        return Outcome("preview", True, f"round {law.number}: there are no samples to show")
    already = made.stat().st_mtime_ns == before
    if not already:
        _write_ledger(job, "running")
    return Outcome("preview", already, str(made))


def _finish(job: Job, progress: Progress) -> Outcome:
    folder, history = job.folder, _history(job, len(job.recipe.law()))
    if history.missing is not None:
        raise RequestError(f"Round {history.missing} is not finished. `urushi run` goes on.")
    if not history.links:
        _write_ledger(job, "stopped by the gate")
        raise GateStopped(
            f"No round of {job.recipe.name} lowered the held-out loss, so nothing was merged. "
            "Lower [rounds].learning_rate, or look at the held-out losses in "
            f"{folder.round(1).held_out}."
        )
    status: Status = "stopped by the gate" if history.stopped else "finished"
    wanted = fingerprint(
        stage="finish",
        links=[[link.round, link.blake3, link.strength] for link in history.links],
        status=status,
    )
    already = done(folder.root, wanted) is not None and folder.ledger.exists()
    if not already:
        started = time.monotonic()
        last = folder.round(history.links[-1].round)
        lay(job, history.links, progress)
        share(last.checkpoint, folder.final)
        merge.concat(
            [merge.Addend(link.lora, link.strength) for link in history.links],
            folder.final_lora,
            identities={link.lora: link.blake3 for link in history.links},
        )
        _write_ledger(job, status, final=True)
        write_receipt(
            folder.root,
            "finish",
            wanted,
            inputs={"rounds": [link.round for link in history.links]},
            outputs=[*files_of(folder.final), folder.final_lora],
            seconds=time.monotonic() - started,
        )
    # The report follows [preview] too, which the receipt above does not; it is written only if it
    # differs.
    make_report(job, read_ledger(folder.ledger))
    if history.stopped:
        raise GateStopped(
            f"The gate stopped {job.recipe.name} after round {history.stopped}: "
            f"{STOP_AFTER} rounds in a row did not lower the held-out loss. "
            f"What was merged before stands in {folder.final}."
        )
    return Outcome("finish", already, f"{folder.final}")


_ROUND_PARTS: tuple[tuple[str, RoundPart], ...] = (
    ("train", _train),
    ("strength", _strength),
    ("merge", _merge),
    ("preview", _preview),
)


def _write_ledger(job: Job, status: Status, *, final: bool = False) -> None:
    history = _history(job, len(job.recipe.law()))
    write_ledger(job.folder.ledger, gather(job, history.laid, status, final=final))


def _write_recipe(job: Job) -> None:
    """The recipe as run, with every default spelled out."""
    text = tomli_w.dumps(job.recipe.model_dump(mode="json", exclude_none=True))
    path = job.folder.recipe
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
