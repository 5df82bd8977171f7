"""The parts of a build in order: for each round train, strength, merge, preview; then finish.

    urushi run RECIPE        all of them
    urushi train RECIPE      the next round's LoRA by hand

Where the recipe leaves the learning rate open, a part `rate` comes first; where strengths are
searched, a part `refit` comes before the last. Each part looks at receipts first, does what is
missing and returns; so any of them can be killed and called again.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import tomli_w

from pipeline.artefacts.files import share, write_text
from pipeline.artefacts.gpus import turn
from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.ledger import Refitted, read_ledger
from pipeline.artefacts.locks import locked
from pipeline.artefacts.receipts import done
from pipeline.artefacts.strength import told
from pipeline.errors import RequestError, UrushiError
from pipeline.preview.stage import make_round_grid
from pipeline.progress import Progress
from pipeline.recipe import RoundLaw
from pipeline.rounds.asking import approve
from pipeline.rounds.baseline import run_baseline
from pipeline.rounds.chain import Link, lay, was_laid
from pipeline.rounds.choice import RECEIPT, Choice, choose, chosen
from pipeline.rounds.finish import finish, is_finished
from pipeline.rounds.history import History, history, law_after
from pipeline.rounds.keep import drop_checkpoints, kept_rounds, require_room
from pipeline.rounds.ledger import gather, require_same_origin, write_build_ledger
from pipeline.rounds.rates import find_rate
from pipeline.rounds.settle import refit_strengths, refitted
from pipeline.rounds.training import training
from pipeline.train.round import train_round


@dataclass(frozen=True)
class Part:
    """One resumable part of a build."""

    name: str
    run: Callable[[Job, Progress], Outcome]


RoundPart = Callable[[Job, RoundLaw, Progress], Outcome]
BuildPart = Callable[[Job, Progress], Outcome]


def parts(job: Job) -> tuple[Part, ...]:
    """Every part of the job's build, in order."""
    rounds = job.recipe.rounds
    listed: list[Part] = []
    if rounds.learning_rate == "auto":
        listed.append(Part("rate", _locked(find_rate)))
    for law in job.recipe.law():
        for name, run in (*_ROUND_PARTS, *(_ASKING if rounds.approve == "each round" else ())):
            listed.append(
                Part(f"round-{law.number:02d}-{name}", _locked_round(name, run, law.number))
            )
    if rounds.refits:
        listed.append(Part("refit", _locked(_refit)))
    if job.recipe.baseline.single:
        listed.append(Part("baseline", _locked(run_baseline)))
    # What strengths that were fitted together draw is only drawn there; `urushi reweigh` fits them
    # where the recipe does not.
    draws = rounds.refits or job.folder.refit.exists()
    listed.append(Part("finish", _locked(finish, gpu=draws)))
    return tuple(listed)


def train(job: Job, progress: Progress) -> Outcome:
    """Trains the LoRA of the first round that has none yet: `urushi train`."""
    with locked(job.folder.root):
        _write_recipe(job)
        require_same_origin(job)
        if job.recipe.rounds.learning_rate == "auto":
            find_rate(job, progress)
        for number in range(1, len(job.recipe.law()) + 1):
            before = history(job, number - 1)
            if before.stopped or before.missing is not None:
                break
            law = law_after(job, before, number)
            if chosen(job, law, before.links) is None:
                outcome = _train(job, law, progress)
                goes_on = f"`urushi run {job.recipe_path}` merges it and goes on"
                return replace(outcome, summary=f"{outcome.summary}; {goes_on}")
    return Outcome("train", True, "every round's LoRA is trained")


def _locked_round(name: str, run: RoundPart, number: int) -> Callable[[Job, Progress], Outcome]:
    def part(job: Job, progress: Progress) -> Outcome:
        with locked(job.folder.root):
            _write_recipe(job)
            require_same_origin(job)
            before = history(job, number - 1)
            if before.stopped is not None:
                stop = before.stopped
                said = f"the build stopped after round {stop.round}: {stop.reason}"
                return Outcome(name, True, said)
            law = law_after(job, before, number)
            with nullcontext() if name in _WITHOUT_GPU else turn(progress.say):
                return run(job, law, progress)

    return part


def _locked(run: BuildPart, *, gpu: bool = True) -> Callable[[Job, Progress], Outcome]:
    def part(job: Job, progress: Progress) -> Outcome:
        with locked(job.folder.root):
            _write_recipe(job)
            require_same_origin(job)
            with turn(progress.say) if gpu else nullcontext():
                return run(job, progress)

    return part


def _base(job: Job, number: int, progress: Progress) -> tuple[tuple[Link, ...], Path | None]:
    """The links before round `number` and the checkpoint that they make (None: the origin)."""
    before = history(job, number - 1)
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
    links = history(job, law.number - 1).links
    if chosen(job, law, links) is not None:
        return Outcome("train", True, "already done")
    require_room(job)
    links, checkpoint = _base(job, law.number, progress)
    plan = training(job, law, links, checkpoint, 1)
    already = done(plan.folder, plan.fingerprint) is not None
    receipt = train_round(job.recipe.model_copy(update={"train": law.train}), plan, progress)
    # The round's receipt is of another LoRA, or of one that is gone.
    (job.folder.round(law.number).root / RECEIPT).unlink(missing_ok=True)
    share(plan.folder / "lora.safetensors", job.folder.round(law.number).lora)
    return Outcome(
        "train",
        already,
        f"round {law.number}: {receipt.summary['steps']} steps at {plan.learning_rate:g}, "
        f"loss {receipt.summary['train_loss']:.4f}",
    )


def _strength(job: Job, law: RoundLaw, progress: Progress) -> Outcome:
    before = history(job, law.number - 1)
    found = chosen(job, law, before.links)
    if found is not None:
        return Outcome("strength", True, _sentence(found[0]))
    links, checkpoint = _base(job, law.number, progress)
    choice = choose(job, law, links, checkpoint, before.anchor_origin, progress)
    return Outcome("strength", False, _sentence(choice))


def _sentence(choice: Choice) -> str:
    counts = choice.counts
    shrunk = f" of {counts.wanted:g}, for the anchor" if counts.strength < counts.wanted else ""
    return (
        f"round {choice.round}: {choice.decision}, strength {told(choice.merged_at)}{shrunk}, "
        f"held-out {counts.before:.5f} -> {counts.after:.5f}"
    )


def _merge(job: Job, law: RoundLaw, progress: Progress) -> Outcome:
    found = history(job, law.number)
    if found.missing is not None:
        raise RequestError(f"Round {law.number} has no strength yet. `urushi run` chooses it.")
    if not found.laid[-1].choice.merged:
        if not _is_noted(job, found):
            write_build_ledger(job, "running")  # No merge follows that would write it.
        return Outcome("merge", True, f"round {law.number} was rejected: nothing to merge")
    every = history(job, len(job.recipe.law()))
    stay = kept_rounds(job, every, is_finished(job, every))
    if was_laid(job, found.links) and (
        law.number not in stay or job.folder.round(law.number).checkpoint.exists()
    ):
        return Outcome("merge", True, "already done")
    receipt = lay(job, found.links, progress)
    drop_checkpoints(job, every, finished=False)
    write_build_ledger(job, "running")
    return Outcome(
        "merge",
        False,
        f"round {law.number}: {receipt.summary['layers']} layers, "
        f"{receipt.summary['cast_loss']:.2%} of the delta lost by the cast",
    )


def _is_noted(job: Job, found: History) -> bool:
    """Whether the ledger has the last of these rounds just as it is."""
    try:
        noted = read_ledger(job.folder.ledger).rounds
    except UrushiError:
        return False
    return gather(job, found, "running", final=False).rounds[-1] in noted


def _preview(job: Job, law: RoundLaw, progress: Progress) -> Outcome:
    found = history(job, law.number)
    if not found.laid[-1].choice.merged:
        return Outcome("preview", True, f"round {law.number} was rejected: nothing to show")
    grid = job.folder.round(law.number).grid
    before = grid.stat().st_mtime_ns if grid.exists() else None
    rows = gather(job, found, "running", final=False).rounds
    made = make_round_grid(job, rows, law.number, progress)
    if made is None:
        return Outcome("preview", True, f"round {law.number}: there are no samples to show")
    already = made.stat().st_mtime_ns == before
    if not already:
        write_build_ledger(job, "running")
    return Outcome("preview", already, str(made))


def _refit(job: Job, progress: Progress) -> Outcome:
    found = history(job, len(job.recipe.law()))
    if found.missing is not None:
        raise RequestError(f"Round {found.missing} is not finished. `urushi run` goes on.")
    if not found.links:
        return Outcome("refit", True, "no round was merged")
    already = refitted(job, found) is not None
    return Outcome("refit", already, refit_sentence(refit_strengths(job, found, progress)))


def refit_sentence(found: Refitted) -> str:
    """What the refit came to, for a person."""
    strengths = ", ".join(map(told, found.final))
    losses = f"held-out {found.before:.5f} -> {found.after:.5f}"
    if not found.kept:
        return f"the rounds' own strengths stay ({strengths}): {losses} with fitted ones"
    return f"strengths {strengths} together, {losses}"


_WITHOUT_GPU = ("merge", "approve")
"""Parts that need not wait for the card."""
_ROUND_PARTS: tuple[tuple[str, RoundPart], ...] = (
    ("train", _train),
    ("strength", _strength),
    ("merge", _merge),
    ("preview", _preview),
)
_ASKING: tuple[tuple[str, RoundPart], ...] = (("approve", approve),)
"""Parts of a round where the recipe wants a person's word."""


def _write_recipe(job: Job) -> None:
    """The recipe as run, with every default spelled out."""
    text = tomli_w.dumps(job.recipe.model_dump(mode="json", exclude_none=True))
    path = job.folder.recipe
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
