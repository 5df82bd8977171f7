"""The end of a build: final.safetensors, final.lora.safetensors, the ledger and the report."""

import time

import merge
from pipeline.artefacts.chain import VERSIONS
from pipeline.artefacts.files import files_of, share
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.ledger import read_ledger
from pipeline.artefacts.receipts import NAME, write_receipt
from pipeline.errors import GateStopped, RequestError
from pipeline.preview.stage import draw_final, make_report
from pipeline.progress import Progress
from pipeline.rounds.baseline import baseline_found
from pipeline.rounds.chain import Link, lay, write_checkpoint
from pipeline.rounds.history import History, history
from pipeline.rounds.keep import drop_checkpoints
from pipeline.rounds.ledger import Status, write_build_ledger
from pipeline.rounds.settle import final_links
from pipeline.rounds.untouched import forget, untouched


def finish(job: Job, progress: Progress) -> Outcome:
    """Writes what is missing of a build's products.

    Raises:
        RequestError: a round is not finished.
        GateStopped: the gate ended the build; what was merged before is written all the same.
    """
    folder, found = job.folder, history(job, len(job.recipe.law()))
    if found.missing is not None:
        raise RequestError(f"Round {found.missing} is not finished. `urushi run` goes on.")
    if not found.links:
        write_build_ledger(job, "stopped by the gate")
        raise GateStopped(
            f"No round of {job.recipe.name} lowered the held-out loss, so nothing was merged. "
            "Lower [rounds].learning_rate, or look at the held-out losses in "
            f"{folder.round(1).held_out}."
        )
    status = _status(found)
    already = is_finished(job, found)
    if not already:
        started = time.monotonic()
        links, wanted = final_links(job, found), _fingerprint(job, found)
        forget(folder.root, wanted, NAME)
        _write_final(job, found, links, progress)
        outputs = files_of(folder.final)
        if not job.recipe.lora.dora:  # Of which there is no sum in one file.
            merge.concat(
                [link.addend for link in links],
                folder.final_lora,
                identities={link.lora: link.blake3 for link in links},
            )
            outputs = [*outputs, folder.final_lora]
        write_build_ledger(job, status, final=True)
        write_receipt(
            folder.root,
            "finish",
            wanted,
            inputs={"rounds": [link.round for link in links]},
            outputs=outputs,
            seconds=time.monotonic() - started,
        )
    elif read_ledger(folder.ledger).status == "running":
        # A part before this one gathered it anew: a rejected round, or pictures drawn again.
        write_build_ledger(job, status, final=True)
    drawn = draw_final(job, read_ledger(folder.ledger), progress)
    already = already and not drawn
    # Here, so that a kill right after the receipt, or another `keep`, is made good.
    drop_checkpoints(job, found, finished=True)
    # The report follows [preview] too, which the receipt above does not; it is written only if it
    # differs.
    make_report(job, read_ledger(folder.ledger))
    if status == "stopped by the gate" and found.stopped is not None:
        raise GateStopped(
            f"The gate stopped {job.recipe.name} after round {found.stopped.round}: "
            f"{found.stopped.reason}. What was merged before stands in {folder.final}."
        )
    if found.stopped is not None:
        said = f"{folder.final}, after round {found.stopped.round}: {found.stopped.reason}"
        return Outcome("finish", already, said)
    return Outcome("finish", already, f"{folder.final}")


def is_finished(job: Job, history: History) -> bool:
    """Whether the final files of exactly these rounds stand.

    Raises:
        UrushiError: one of them was changed by hand.
    """
    if history.missing is not None or not history.links:
        return False
    wanted, remedy = _fingerprint(job, history), "move it away: the build makes its own again"
    made = untouched(job, job.folder.root, wanted, NAME, remedy)
    return made is not None and job.folder.ledger.exists()


def _fingerprint(job: Job, history: History) -> str:
    links, baseline = final_links(job, history), baseline_found(job, history)
    return fingerprint(
        stage="finish",
        version=VERSIONS["finish"],
        links=[[link.round, link.blake3, link.strength] for link in links],
        merged=[[link.round, link.strength] for link in history.links],
        status=_status(history),
        stopped=history.stopped.reason if history.stopped else None,
        baseline=baseline.model_dump(mode="json") if baseline else None,
    )


def _status(history: History) -> Status:
    stopped = history.stopped is not None and history.stopped.rule == "rejections"
    return "stopped by the gate" if stopped else "finished"


def _write_final(job: Job, history: History, links: tuple[Link, ...], progress: Progress) -> None:
    folder = job.folder
    if links == history.links:
        lay(job, links, progress)
        share(folder.round(links[-1].round).checkpoint, folder.final)
        return
    with progress.bar("final", 1, "checkpoint") as bar:
        write_checkpoint(job, links, folder.final)
        bar.advance()
