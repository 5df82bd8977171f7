"""`urushi check RECIPE`: what is wrong with a recipe, and what is known not to work well.

Errors end it with exit code 2; warnings are printed and leave it at 0. Nothing is downloaded, and
of checkpoints only the header is read.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.artefacts.chain import ALIKE_FILE, IMAGES_FILE, download_fingerprint
from pipeline.artefacts.job import Job, init_lora, load_job
from pipeline.artefacts.masks import mask_files
from pipeline.artefacts.receipts import done
from pipeline.artefacts.records import Alike, ImageRecord, read_records
from pipeline.errors import RequestError
from pipeline.models.configurations import SCHEDULER_FILE, configurations
from pipeline.models.inspect import BaseFacts, inspect, require_supported
from pipeline.models.layout import read_configuration
from pipeline.recipe import BuildRecipe, DatasetRecipe
from pipeline.train.trackers import require_trackers
from urushi.plan import disk_bytes, pictures, round_traps
from urushi.table import size
from urushi.training_traps import (
    base_traps,
    machine_traps,
    mask_traps,
    masks_of_traps,
    regularisation_traps,
    training_traps,
)
from urushi.traps import CODES, Known, Trap, build_traps, dataset_traps, picture_traps


def print_check(recipe: Path, workspace: Path) -> None:
    """Prints what the recipe asks and the warnings.

    Raises:
        RequestError: what is wrong with it, also that a folder which it names is not there.
    """
    job = load_job(recipe, workspace)
    silenced = _silenced(job)
    for _, dataset in job.datasets:
        _require_folder(dataset)
        mask_files(dataset)
        _require_search(dataset)
    facts = None if job.build is None else _facts(job)
    base = [] if facts is None else [f"  base: {_sentence(facts)}"]
    print("\n".join([f"{recipe}: {_what(job)}", *base]))
    traps = [trap for trap in _traps(job, facts) if trap.code not in silenced]
    for trap in traps:
        print(f"  warning [{trap.code}]: {trap.text}")
    if not traps:
        print("  nothing to warn of")
    else:
        print('  Reasons and remedies: WARNINGS.md. silence = ["CODE"] in a recipe silences one.')


def _silenced(job: Job) -> frozenset[str]:
    codes: set[str] = set(job.build.silence) if job.build is not None else set()
    for _, dataset in job.datasets:
        codes |= set(dataset.silence)
    unknown = sorted(codes - set(CODES))
    if unknown:
        raise RequestError(
            f"silence names {', '.join(unknown)}, which no warning is called. "
            f"There are: {', '.join(CODES)}."
        )
    return frozenset(codes)


def _traps(job: Job, base: BaseFacts | None = None) -> Iterator[Trap]:
    for _, dataset in job.datasets:
        yield from dataset_traps(dataset)
    if job.build is None:
        return
    yield from build_traps(job.build)
    yield from training_traps(job.build)
    yield from mask_traps(job.build)
    yield from machine_traps(job.build)
    if base is not None:
        yield from base_traps(job.build, base, _stated(job.build))
    regularisation = {each.recipe for each in job.build.datasets if each.regularisation}
    for path, dataset in job.datasets:
        known = _known(job, job.build, dataset, looks=path in regularisation)
        yield from (regularisation_traps(dataset, known) if path in regularisation else ())
        if path not in regularisation:
            yield from masks_of_traps(job.build, dataset, len(mask_files(dataset)))
        further = any(path == each.recipe for each in job.build.datasets)
        for trap in picture_traps(job.build, dataset, known):
            # Nothing of a further dataset is held out, and its steps are no subject's.
            if not (further and trap.code in ("held-out-few", "step-count")):
                yield trap
    yield from round_traps(job.build, {path: pictures(job, each) for path, each in job.datasets})
    needed = disk_bytes(job)
    place = next(p for p in (job.workspace.root, *job.workspace.root.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if needed is not None and needed > free:
        least = job.build.rounds.keep in ("last", "none")
        fewer = "" if least else ', or set [rounds].keep = "last"'
        yield Trap(
            "disk",
            f"The build may take {size(needed)} and {place} has {size(free)} left. Free some, "
            f"or choose another --workspace{fewer}.",
        )


def _known(job: Job, build: BuildRecipe, dataset: DatasetRecipe, *, looks: bool) -> Known:
    """What is known of a dataset; with `looks`, of its pictures as regularisation, too."""
    folder = job.dataset_folder(dataset)
    if done(folder.images, download_fingerprint(dataset)) is None:
        return Known()
    # Imported here: a recipe whose pictures are not there yet needs none of it.
    from pipeline.caption.rules import write_caption
    from pipeline.caption.stage import with_rules
    from pipeline.caption.statistics import statistics
    from urushi.regularisation import looked_at

    images, rules = with_rules(
        dataset, folder, read_records(folder.images / IMAGES_FILE, ImageRecord)
    )
    near = statistics(write_caption(image, rules) for image in images).near_synonyms
    area = build.resize.resolution**2
    sized = [image for image in images if image.width * image.height]
    seen, transparent, generated = looked_at(folder.root, images) if looks else (0, 0, 0)
    return Known(
        pictures=len(images),
        small=sum(image.width * image.height < area for image in sized),
        alike=_alike(folder.images / ALIKE_FILE),
        looked_at=seen,
        transparent=transparent,
        generated=generated,
        shared_words=tuple(one.tags for one in near),
    )


def _alike(file: Path) -> int:
    """Pictures that look like another one."""
    if not file.exists():
        return 0
    return sum(len(group.md5s) - 1 for group in read_records(file, Alike))


def _what(job: Job) -> str:
    names = ", ".join(dataset.name for _, dataset in job.datasets)
    if job.build is None:
        return f"dataset {names}"
    return f"build {job.build.name}, {len(job.build.law())} rounds over {names}"


def _require_folder(dataset: DatasetRecipe) -> None:
    if dataset.folder is not None and not dataset.folder.path.is_dir():
        raise RequestError(
            f"There is no folder {dataset.folder.path} ([folder].path of {dataset.name}). "
            "Paths in a recipe are meant from the recipe's own folder."
        )


def _require_search(dataset: DatasetRecipe) -> None:
    """Refuses a site, tags, ratings or lists of exclusions that a download would refuse."""
    from pipeline.download.rules import exclusions
    from pipeline.download.sites import dialect_of

    exclusions(dataset.exclude)
    if dataset.download is not None:
        dialect_of(dataset.download.site).query(dataset.download)


def _facts(job: Job) -> BaseFacts:
    """Also refuses what training would refuse once everything is fetched: an optimizer, a LoRA to
    go on with, a tracker."""
    recipe = job.recipe
    init_lora(job)
    require_trackers([name for law in recipe.law() for name in law.train.trackers])
    facts = inspect(recipe.base)
    require_supported(facts)
    if recipe.train.asks_of_its_optimizer:
        # Imported here: it brings torch, and most recipes ask for nothing to look at.
        from pipeline.train.optimizers import try_optimizer

        try_optimizer(recipe.train)
    return facts


def _stated(recipe: BuildRecipe) -> str | None:
    """What the configuration beside the base says that it predicts."""
    folder = configurations(recipe.base)
    if folder is None:
        return None
    stated = read_configuration(folder / SCHEDULER_FILE).get("prediction_type")
    return None if stated is None else str(stated)


def _sentence(facts: BaseFacts) -> str:
    zero = ", zero terminal SNR" if facts.zero_terminal_snr else ""
    return (
        f"{facts.path} ({facts.family}, {facts.layout}, {facts.prediction_type}{zero}, "
        f"{facts.tensors} tensors, {size(facts.bytes)})"
    )
