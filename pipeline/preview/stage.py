"""A build's checkpoints into sample grids (rounds/NN/grid.png) and report.html.

    urushi preview RECIPE

Draws the origin and every round whose checkpoint is on disk, and only what is not drawn yet.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.ledger import Ledger, RoundRow, read_ledger
from pipeline.artefacts.locks import locked
from pipeline.artefacts.receipts import done, read_receipt, write_receipt
from pipeline.models.family import family_of
from pipeline.models.inspect import inspect, require_supported
from pipeline.preview.card import write_card
from pipeline.preview.columns import final_identity, read_sheet
from pipeline.preview.counts import data_counts
from pipeline.preview.data import dataset_facts
from pipeline.preview.grid import write_grid
from pipeline.preview.report import write_report
from pipeline.preview.sample import is_sampled, sample
from pipeline.preview.wording import count
from pipeline.progress import Progress
from pipeline.recipe.shots import sample_size, shots

GRID_VERSION = 2
"""Raised when the same pictures would be laid out otherwise."""
GRID_RECEIPT = "grid.json"


def run(job: Job, progress: Progress) -> Outcome:
    """Samples and grids of all rounds, and the report where a build has run.

    Raises:
        RequestError: the recipe is not a build's, or its base cannot be loaded.
        BusyError: another process works on the build.
    """
    folder = job.folder
    require_supported(inspect(job.recipe.base))
    if not job.recipe.preview.prompts:
        progress.say("[preview] has no prompts, so there are no grids.")
    with locked(folder.root):
        ledger = read_ledger(folder.ledger) if folder.ledger.exists() else None
        rows = ledger.rounds if ledger is not None else ()
        drawn = draw_samples(job, rows, progress)
        drawn += draw_final(job, ledger, progress) if ledger is not None else 0
        written = 0
        for number in [row.round for row in rows] or [0]:
            written += _write_round_grid(job, rows, number, progress)
        if ledger is None:
            place = folder.round(0).grid
            return Outcome("preview", drawn + written == 0, f"the origin's samples: {place}")
        before = folder.report.stat().st_mtime_ns if folder.report.exists() else None
        report = make_report(job, ledger)
        already = drawn + written == 0 and report.stat().st_mtime_ns == before
    return Outcome(
        "preview", already, f"{count(drawn, 'picture')} drawn, {count(written, 'grid')}, {report}"
    )


def make_round_grid(
    job: Job, rows: Sequence[RoundRow], number: int, progress: Progress
) -> Path | None:
    """rounds/NN/grid.png for round `number`: the origin, what stood before, this round.

    Draws what is not drawn yet. A round whose checkpoint is gone keeps the samples it has. Hold the
    build's lock.

    Args:
        rows: the ledger's, round `number` among them (0: the origin alone, without rows).

    Returns:
        The grid's path, or None where there is nothing to show: no samples of round `number` and
        no checkpoint to draw them with.

    Raises:
        RequestError: a model cannot be loaded.
    """
    draw_samples(job, [row for row in rows if row.round <= number], progress)
    _write_round_grid(job, rows, number, progress)
    grid = job.folder.round(number).grid
    return grid if grid.exists() else None


def make_report(job: Job, ledger: Ledger) -> Path:
    """report.html, and the model card where the build is finished. Hold the build's lock.

    Returns:
        The report's path.
    """
    facts = dataset_facts(job)
    if ledger.final is not None:
        write_card(job.folder, ledger, job.recipe, family_of(job.recipe.base), facts)
    return write_report(job.folder, ledger, data_counts(job), facts)


def draw_samples(job: Job, rows: Sequence[RoundRow], progress: Progress) -> int:
    """Pictures of the origin and of `rows` that are not drawn yet; returns how many were drawn."""
    recipe, folder = job.recipe, job.folder
    base, preview, size = recipe.base, recipe.preview, sample_size(recipe)
    if not preview.prompts:
        return 0
    wanted: list[tuple[str, Path | None, Path, str]] = [
        ("samples of the origin", None, folder.round(0).samples, origin_identity(job))
    ]
    for row in rows:
        if row.strength > 0:
            place = folder.round(row.round)
            what = f"samples of round {row.round}"
            wanted.append((what, place.checkpoint, place.samples, row.checkpoint_sha256))
    drawn = 0
    for what, checkpoint, samples, identity in wanted:
        if is_sampled(base, preview, size, samples, identity):
            continue
        if checkpoint is not None and not checkpoint.exists():
            progress.say(
                f"{what}: not drawn, because {checkpoint} is no longer there "
                '([rounds].keep = "all" keeps every round\'s).'
            )
            continue
        sample(base, checkpoint, preview, size, samples, identity, progress, what=what)
        drawn += len(shots(preview))
    return drawn


def draw_final(job: Job, ledger: Ledger, progress: Progress) -> int:
    """Pictures of the final checkpoint where its strengths were fitted together, so that no round's
    show it; returns how many were drawn. Hold the build's lock."""
    folder, preview, size = job.folder, job.recipe.preview, sample_size(job.recipe)
    identity = final_identity(ledger)
    if identity is None or not preview.prompts:
        return 0
    base, samples = job.recipe.base, folder.final_samples
    if is_sampled(base, preview, size, samples, identity):
        return 0
    what = "samples of the final checkpoint"
    sample(base, folder.final, preview, size, samples, identity, progress, what=what)
    return len(shots(preview))


def origin_identity(job: Job) -> str:
    """Of the base's weights, and of the configuration they are read with."""
    base, identities = job.recipe.base, job.workspace.identities
    weights = identities.of(base.checkpoint)
    if base.config is None:
        return weights
    return fingerprint(weights=weights, config=identities.of(base.config))


def _write_round_grid(job: Job, rows: Sequence[RoundRow], number: int, progress: Progress) -> bool:
    """Writes the grid of round `number` unless it stands; whether it had to."""
    place, enlarge = job.folder.round(number), job.recipe.preview.enlarge
    sheet = read_sheet(job.folder, rows, number)
    if not sheet.columns or sheet.columns[-1].number != number:
        return False
    shown = [(column.heading, list(column.pictures)) for column in sheet.round_columns()]
    labels = sheet.labels()
    mark = fingerprint(
        stage="grid",
        version=GRID_VERSION,
        enlarge=enlarge,
        labels=labels,
        columns=[(heading, _blake3s(pictures)) for heading, pictures in shown],
    )
    if done(place.root, mark, GRID_RECEIPT):
        return False
    write_grid(shown, labels, enlarge, place.grid)
    write_receipt(
        place.root,
        "grid",
        mark,
        inputs={"columns": [heading.split("\n")[0] for heading, _ in shown], "enlarge": enlarge},
        outputs=[place.grid],
        name=GRID_RECEIPT,
    )
    return True


def _blake3s(pictures: list[Path]) -> list[str]:
    receipt = read_receipt(pictures[0].parent)
    return [receipt.outputs[path.name].blake3 for path in pictures] if receipt else []
