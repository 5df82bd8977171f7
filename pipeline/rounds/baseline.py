"""The honest baseline: one LoRA of the rounds' rank, trained for as many steps as all of them took.

Same rate, schedule and pictures as round 1's; its checkpoints are kept as often as there were
rounds, so that it may be stopped early and refitted as they are.
"""

import time
from dataclasses import replace

import merge
from pipeline.artefacts.chain import VERSIONS
from pipeline.artefacts.files import write_text
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.ledger import BaselineRow
from pipeline.artefacts.receipts import write_receipt
from pipeline.errors import RequestError
from pipeline.progress import Progress
from pipeline.rounds.evaluate import HeldOut
from pipeline.rounds.gate import judge
from pipeline.rounds.history import History, history
from pipeline.rounds.jury import Jury
from pipeline.rounds.parting import Parting
from pipeline.rounds.pictures import pictures
from pipeline.rounds.settle import final_links
from pipeline.rounds.single import differences, weigh
from pipeline.rounds.training import training
from pipeline.rounds.untouched import forget, untouched
from pipeline.train.counted import seed_of
from pipeline.train.plan import RoundTraining
from pipeline.train.product import snapshot, snapshot_steps
from pipeline.train.rate import WHOLE
from pipeline.train.round import train_round

RECEIPT = "baseline-receipt.json"


def baseline_found(job: Job, history: History) -> BaselineRow | None:
    """What the baseline came to, beside exactly these rounds; None where it was not made."""
    if not job.recipe.baseline.single or not history.laid:
        return None
    wanted, remedy = _fingerprint(job, history), "delete it to judge the single LoRA again"
    if untouched(job, job.folder.root, wanted, RECEIPT, remedy) is None:
        return None
    return BaselineRow.model_validate_json(job.folder.baseline_row.read_bytes())


def run_baseline(job: Job, progress: Progress) -> Outcome:
    """Trains and judges the single LoRA, and keeps it refitted in baseline/lora.safetensors."""
    rounds = history(job, len(job.recipe.law()))
    if rounds.missing is not None:
        raise RequestError(f"Round {rounds.missing} is not finished. `urushi run` goes on.")
    if not rounds.links:
        return Outcome("baseline", True, "no round was merged to compare with")
    found = baseline_found(job, rounds)
    if found is not None:
        return Outcome("baseline", True, _sentence(found))
    plan, first = _plan(job, rounds), rounds.laid[0].law
    receipt = train_round(job.recipe.model_copy(update={"train": first.train}), plan, progress)
    started = time.monotonic()
    steps = snapshot_steps(receipt.summary["steps"], plan.snapshots)
    files = [(step, snapshot(plan.folder, step)) for step in steps]
    seen = [pictures(job, first)]
    single, alone = weigh(job, seen, files, progress)
    links = final_links(job, rounds)
    with progress.bar("rounds", 1, "pass") as bar:
        held_out = HeldOut(job.recipe, None, [link.lora for link in links], live=rounds.live)
        strengths = [link.strength for link in links]
        parting = Parting(tuple(isinstance(strength, tuple) for strength in strengths))
        jury = Jury(held_out, seen, bar, parting.strengths)
        together = jury.judged(parting.flat(strengths))
        bar.advance()
    verdict = judge(
        alone.mean(axis=1).tolist(),
        together.mean(axis=1).tolist(),
        seed_of(job.recipe.seed, "bootstrap", "baseline"),
    )
    found = BaselineRow(
        learning_rate=plan.learning_rate,
        steps=receipt.summary["steps"],
        seconds=receipt.seconds,
        single=single,
        rounds=verdict.after,
        low=verdict.low,
        high=verdict.high,
    )
    weighed = zip(files, differences(single.strengths), strict=True)
    lora = job.folder.baseline / "refitted.safetensors"
    wanted = _fingerprint(job, rounds)
    forget(job.folder.root, wanted, RECEIPT)
    merge.concat([merge.Addend(path, factor) for (_, path), factor in weighed], lora)
    write_text(job.folder.baseline_row, found.model_dump_json(indent=1) + "\n")
    write_receipt(
        job.folder.root,
        "baseline",
        wanted,
        inputs={"steps": found.steps},
        outputs=[job.folder.baseline_row, lora],
        seconds=time.monotonic() - started,
        name=RECEIPT,
    )
    return Outcome("baseline", False, _sentence(found))


def _plan(job: Job, rounds: History) -> RoundTraining:
    first = rounds.laid[0].law
    steps = sum(attempt.steps for item in rounds.laid for attempt in item.choice.attempts)
    plan = training(job, replace(first, steps=steps, epochs=None), (), None, 1)
    count = max(2, len(rounds.laid))
    seed = seed_of(job.recipe.seed, "baseline")
    whole = [WHOLE.first, WHOLE.last]
    settings = {**plan.settings, "seed": seed, "snapshots": count, "phase": whole}
    return replace(
        plan,
        folder=job.folder.baseline,
        seed=seed,
        phase=WHOLE,
        snapshots=count,
        settings=settings,
        fingerprint=fingerprint(stage="baseline", **settings),
    )


def _fingerprint(job: Job, rounds: History) -> str:
    return fingerprint(
        stage="beside",
        version=VERSIONS["baseline"],
        single=_plan(job, rounds).fingerprint,
        split=pictures(job, rounds.laid[0].law).split.model_dump(mode="json"),
        rounds=[[link.blake3, link.strength] for link in final_links(job, rounds)],
    )


def _sentence(found: BaselineRow) -> str:
    single = found.single
    return (
        f"one LoRA, {found.steps} steps: {single.last:.5f} at its end, {single.early_stopped:.5f} "
        f"at step {single.stopped_at}, {single.refitted:.5f} refitted; "
        f"the rounds: {found.rounds:.5f}"
    )
