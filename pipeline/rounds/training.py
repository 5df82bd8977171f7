"""A job and a round's law into what the training room needs: pictures, base, seed, fingerprint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.artefacts.chain import VERSIONS
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job, init_lora
from pipeline.artefacts.strength import adds
from pipeline.errors import RequestError
from pipeline.recipe import RoundLaw
from pipeline.recipe.running import Running
from pipeline.recipe.train import Train
from pipeline.rounds.anchor import anchor_of
from pipeline.rounds.chain import Link, origin_digest
from pipeline.rounds.further import further_sources, identities
from pipeline.rounds.gate import RETRY_RATE
from pipeline.rounds.kin import with_kin
from pipeline.rounds.pictures import pictures
from pipeline.train.counted import seed_of
from pipeline.train.plan import Earlier, RoundTraining, Start
from pipeline.train.rate import WHOLE, Phase, jagged


def earlier(base: tuple[Link, ...]) -> tuple[Earlier, ...]:
    """Merged rounds as LoRAs that stand beside the origin."""
    return tuple(Earlier(f"round_{link.round:02d}", link.lora, link.strength) for link in base)


def training(
    job: Job, law: RoundLaw, base: tuple[Link, ...], checkpoint: Path | None, attempt: int
) -> RoundTraining:
    """What to train for `attempt` (1 or 2) of a round on top of the merged links `base`.

    Raises:
        RequestError: the trials that find the rate have not been made.
    """
    if law.learning_rate is None:
        raise RequestError(
            f"Round {law.number} has no learning rate yet. `urushi run` makes the trials first."
        )
    recipe, folder = job.recipe, job.folder.round(law.number)
    seen, phase, apart = pictures(job, law), _phase(job, law), _apart(job, law)
    learnt = tuple(md5 for md5 in seen.train if md5 not in apart)
    further = further_sources(job, law, apart)
    repeats = recipe.dataset.repeats if law.dataset == recipe.dataset.recipe else 1
    rate = law.learning_rate * RETRY_RATE ** (attempt - 1)
    again = ("redone", law.redone) if law.redone else ()
    seed = seed_of(recipe.seed, "round", law.number, "attempt", attempt, *again)
    start = _start(job, base)
    init = init_lora(job) if law.number == 1 else None
    settings = {
        "version": VERSIONS["train"],
        "origin": origin_digest(job),
        "base": [[link.blake3, link.strength] for link in base],
        "latents": seen.folders.latents_fingerprint,
        "texts": seen.folders.text_fingerprint,
        "live": law.live,
        "pictures": fingerprint(pictures=list(learnt)),
        "lora": recipe.lora.model_dump(mode="json", exclude={"init"}),
        "train": _keys(law.train),
        "seed": seed,
        "round": law.number,
        "learning_rate": rate,
        "epochs": law.epochs,
        "steps": law.steps,
        "phase": [phase.first, phase.last],
        "start": start.policy,
        "init": None if init is None else job.workspace.identities.of(init),
        "repeats": repeats,
        "further": identities(job, law, further),
    }
    return RoundTraining(
        folder=folder.train if attempt == 1 else folder.root / "retry",
        fingerprint=fingerprint(stage="train", **settings),
        settings=settings,
        round=law.number,
        seed=seed,
        learning_rate=rate,
        epochs=law.epochs,
        steps=law.steps,
        phase=phase,
        snapshots=0,
        checkpoint=None if law.train.earlier_beside else checkpoint,
        beside=earlier(base) if law.train.earlier_beside else (),
        pictures=learnt,
        latents=seen.folders.latents,
        texts=seen.folders.captions if law.live else seen.folders.text,
        stop=job.folder.stop,
        force=job.force,
        start=replace(start, init=init),
        repeats=repeats,
        further=further,
        live=law.live,
    )


def _apart(job: Job, law: RoundLaw) -> frozenset[str]:
    """md5s that a round must not learn from: those that it is judged by, and all that is like them.

    They are those of the rounds up to it and of the anchor; a later round must not undo these.
    """
    recipe, anchor = job.recipe, anchor_of(job)
    judged = {each.dataset: pictures(job, each).split.md5s for each in recipe.law()[: law.number]}
    apart = frozenset[str]().union(*judged.values(), anchor.split.md5s if anchor else ())
    beside = (each.recipe for each in recipe.datasets)
    anchors = () if recipe.rounds.anchor is None else (recipe.rounds.anchor,)
    return with_kin(job, (*judged, *beside, *anchors), apart, whole=anchor is None)


def _keys(train: Train) -> dict[str, Any]:
    """What of [train] a round's LoRA hangs on."""
    keys = train.model_dump(mode="json", exclude=set(Running.model_fields))
    if not train.masked_loss:
        # Left out, as they were before there were masks: rounds trained then stay done.
        del keys["masked_loss"], keys["unmasked_weight"]
    return keys


def _phase(job: Job, law: RoundLaw) -> Phase:
    """Which piece of a cosine the round runs through."""
    if job.recipe.rounds.envelope == "round":
        return WHOLE
    laws = job.recipe.law()
    # Epochs of one dataset are steps of one length; where rounds count differently, each weighs
    # the same.
    lengths = [tuple(getattr(each, unit) for each in laws) for unit in ("steps", "epochs")]
    whole = next((each for each in lengths if None not in each), (1,) * len(laws))
    return jagged(whole)[law.number - 1]


def _start(job: Job, base: tuple[Link, ...]) -> Start:
    """As the recipe says; where nothing was merged there is nothing to take over."""
    policy = job.recipe.rounds.start
    base = tuple(link for link in base if adds(link.strength))
    if not base:
        return Start("fresh" if policy == "kept" else "gradient" if policy == "carried" else policy)
    return Start(policy, tuple(link.lora for link in base), tuple(link.strength for link in base))
