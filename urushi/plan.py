"""`urushi plan RECIPE`: what a recipe will take, before anything runs.

What is counted from receipts is said plainly; what follows from the recipe's limits is an upper
bound (≤); what nobody measured yet is said to be unknown.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.artefacts.chain import IMAGES_FILE, download_fingerprint
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.receipts import done
from pipeline.artefacts.records import ImageRecord, read_records
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.errors import RequestError
from pipeline.models.components import TEXTS, VAE, Family
from pipeline.models.configurations import configurations
from pipeline.models.family import family_of
from pipeline.models.layout import read_configuration
from pipeline.recipe import BuildRecipe, DatasetRecipe, RoundLaw
from urushi.plan_hours import time_lines
from urushi.plan_loras import lora_lines, planned_loras
from urushi.plan_memory import memory_lines
from urushi.short_rounds import short_rounds
from urushi.table import duration, size, table
from urushi.traps import Trap

LATENT_FACTOR = 8
"""Pixels a latent's side, Stable Diffusion's."""
LATENT_BYTES = 2 * 4 * 2
"""A latent pixel's mean and logvar, 4 channels, float16; a mask is one byte more."""
TEXT_FEATURES: dict[Family, int] = {"sd15": 768, "sdxl": 768 + 1280}
"""Of a token, as the models were published."""
TEXT_BYTES = 77 * 2
"""A feature of a caption's 77 tokens, float16."""


@dataclass(frozen=True)
class Pictures:
    """How many pictures a dataset has."""

    count: int | None
    """None: a folder that nobody has looked through yet."""
    known: bool
    """Counted from the download's receipt; else the recipe's limit."""
    bytes: int | None
    """Of the originals on disk; None until they are."""

    def __str__(self) -> str:
        if self.count is None:
            return "?"
        return f"{self.count}" if self.known else f"≤{self.count}"


def pictures(job: Job, dataset: DatasetRecipe) -> Pictures:
    """What is known of `dataset`'s pictures."""
    folder = job.dataset_folder(dataset)
    receipt = done(folder.images, download_fingerprint(dataset))
    if receipt is None:
        limit = dataset.download.limit if dataset.download else None
        return Pictures(limit, False, None)
    records = read_records(folder.images / IMAGES_FILE, ImageRecord)
    paths = [folder.root / record.path for record in records]
    return Pictures(len(records), True, sum(p.stat().st_size for p in paths if p.exists()))


def steps(
    recipe: BuildRecipe, law: RoundLaw, count: Pictures, further: Sequence[Pictures] = ()
) -> str:
    """A round's optimizer steps; by epochs about, as every bucket ends with a smaller batch."""
    number = _steps(recipe, law, count, further)
    if number is None:
        return "?"
    if law.steps is not None:
        return str(number)
    return f"~{number}" if count.known else f"≤~{number}"


def _steps(
    recipe: BuildRecipe, law: RoundLaw, count: Pictures, further: Sequence[Pictures]
) -> int | None:
    if law.steps is not None:
        return law.steps
    if law.epochs is None or count.count is None:
        return None
    trained = trained_on(recipe, count) or 0
    if law.dataset == recipe.dataset.recipe:
        trained *= recipe.dataset.repeats
    shown = [trained]
    for dataset, pictures in zip(recipe.datasets, further, strict=True):
        if pictures.count is None:
            return None
        if dataset.recipe != law.dataset:
            shown.append(pictures.count * dataset.repeats)
    batches = law.epochs * sum(-(-each // law.train.batch_size) for each in shown)
    return -(-batches // law.train.accumulation)


def trained_on(recipe: BuildRecipe, count: Pictures) -> int | None:
    """How many of a dataset's pictures are not held out; None where nobody counted them."""
    if count.count is None:
        return None
    return max(0, count.count - recipe.rounds.kept_back(count.count))


def round_traps(recipe: BuildRecipe, counts: dict[Path, Pictures]) -> Iterator[Trap]:
    """Traps in how long the rounds are."""
    trained = [trained_on(recipe, counts[law.dataset]) for law in recipe.law()]
    return short_rounds(recipe, _each_steps(recipe, counts), trained)


def _each_steps(recipe: BuildRecipe, counts: dict[Path, Pictures]) -> list[int | None]:
    further = [counts[dataset.recipe] for dataset in recipe.datasets]
    return [_steps(recipe, law, counts[law.dataset], further) for law in recipe.law()]


def _all_steps(recipe: BuildRecipe, counts: dict[Path, Pictures]) -> int | None:
    """Of all rounds; None where one's are not known."""
    each = _each_steps(recipe, counts)
    return None if None in each else sum(number for number in each if number is not None)


def print_plan(recipe: Path, workspace: Path) -> None:
    """Prints the plan.

    Raises:
        RequestError: what is wrong with the recipe.
    """
    job = load_job(recipe, workspace)
    counts = {path: pictures(job, dataset) for path, dataset in job.datasets}
    print("Pictures")
    for path, dataset in job.datasets:
        for line in _download_lines(dataset, counts[path], job.dataset_folder(dataset)):
            print(f"  {line}")
    if job.build is None:
        return
    print("Rounds")
    print(_rounds(job.build, job, counts))
    for trap in round_traps(job.build, counts):
        if trap.code not in job.build.silence:
            print(f"  warning [{trap.code}]: {trap.text}")
    print("Disk")
    for line in _disk_lines(job.build, counts):
        print(f"  {line}")
    print("GPU memory")
    for line in memory_lines(job.build):
        print(f"  {line}")
    print("Time")
    for line in time_lines(job, _all_steps(job.build, counts)):
        print(f"  {line}")


def _download_lines(
    dataset: DatasetRecipe, count: Pictures, folder: DatasetFolder
) -> Iterator[str]:
    if count.known:
        on_disk = f", {size(count.bytes)}" if count.bytes is not None else ""
        yield f"{dataset.name}: {count} pictures, downloaded{on_disk}"
    elif dataset.folder is not None:
        yield f"{dataset.name}: what is under {dataset.folder.path}; `urushi download` counts it"
    elif dataset.download is not None:
        from pipeline.download.outlook import before_it_began, outlook

        pace = f"at {dataset.download.requests_per_second:g} requests a second at least"
        known = outlook(dataset, folder)
        if known is None:
            unknown = before_it_began(dataset)
            names, kinds = unknown.former_names, "; more for the kinds of its tags"
            yield (
                f"{dataset.name}: {count} pictures; {pace} {duration(unknown.seconds)}"
                + (f", and up to {duration(names)} for artists' former names" if names else "")
                + (kinds if unknown.asks_kinds else "")
            )
            return
        found = f"{known.files:,}" if not known.most_to_come else f"≤{known.most:,}"
        much = "" if known.bytes is None else f", about {size(known.bytes)}"
        yield (
            f"{dataset.name}: {found} pictures, {known.files - known.to_fetch:,} of them settled; "
            f"{known.to_fetch + known.most_to_come:,} to go{much}, {pace} "
            f"{duration(known.seconds)}"
            + (f", questions about tags included ({known.questions:,})" if known.questions else "")
        )


def _rounds(recipe: BuildRecipe, job: Job, counts: dict[Path, Pictures]) -> str:
    further = [counts[dataset.recipe] for dataset in recipe.datasets]
    rows = [
        (
            str(law.number),
            job.dataset_of(law.dataset).name,
            "by trials" if law.learning_rate is None else f"{law.learning_rate:.3g}",
            "-" if law.epochs is None else str(law.epochs),
            steps(recipe, law, counts[law.dataset], further),
            "searched" if law.strength is None else f"{law.strength:g}",
        )
        for law in recipe.law()
    ]
    header = ("round", "dataset", "learning rate", "epochs", "steps", "strength")
    return table(header, rows)


def _disk_lines(recipe: BuildRecipe, counts: dict[Path, Pictures]) -> Iterator[str]:
    originals = [count.bytes for count in counts.values()]
    known = sum(o for o in originals if o is not None)
    unknown = " and what is not downloaded yet (unknown)" if None in originals else ""
    yield f"originals    {size(known)}{unknown}"
    some = any(count.count is None for count in counts.values())
    more = ", and the folders not counted yet" if some else ""
    resized, latents, texts = _data_bytes(recipe, counts)
    if recipe.resize.keep:
        yield f"resized      ≤ {size(resized)} ({recipe.resize.format}){more}"
    else:
        yield "resized      none is kept: the cache reads the originals"
    masks = "" if recipe.cache.masks is None else " with masks"
    yield f"cache        ≤ {size(latents)} latents{masks}, {size(texts)} texts{more}"
    base, kept = base_bytes(recipe), _checkpoints(recipe)
    if base is None:
        yield f"checkpoints  {kept} x the base, which is not there yet"
    else:
        yield (
            f"checkpoints  {size(kept * base)} ({kept} x the base: the final one and "
            f"[rounds].keep = {json.dumps(recipe.rounds.keep)})"
        )
    yield from lora_lines(recipe, planned_loras(recipe, _each_steps(recipe, counts)))


def _data_bytes(recipe: BuildRecipe, counts: dict[Path, Pictures]) -> tuple[int, int, int]:
    """At most: resized pictures, latents with their masks, texts."""
    total = sum(count.count or 0 for count in counts.values())
    area = sum(side**2 for side in recipe.resize.resolutions)
    factor, features = _latent_and_text(recipe)
    cache = recipe.cache
    each = LATENT_BYTES + (cache.masks is not None)
    latents = total * area // factor**2 * each * (1 + cache.mirror + cache.recolour)
    resized = 3 * total * area if recipe.resize.keep else 0
    texts = (total + 1) * TEXT_BYTES * features if recipe.caches_text else 0
    return resized, latents, texts


def _checkpoints(recipe: BuildRecipe) -> int:
    """How many lie on disk at most: the final one and the rounds'."""
    rounds, keep = len(recipe.law()), recipe.rounds.keep
    if keep == "all":
        return 1 + rounds
    if isinstance(keep, int):
        return 1 + min(keep, rounds)
    # The best round's may be another than the last, which is trained upon.
    return 3 if keep == "best" and rounds > 1 else 2


def disk_bytes(job: Job) -> int | None:
    """What a build will write at most, besides originals; None while the base is not there."""
    if job.build is None or (base := base_bytes(job.build)) is None:
        return None
    counts = {path: pictures(job, dataset) for path, dataset in job.datasets}
    loras = planned_loras(job.build, _each_steps(job.build, counts))
    data = sum(_data_bytes(job.build, counts))
    return data + _checkpoints(job.build) * base + (loras.bytes if loras is not None else 0)


def _latent_and_text(recipe: BuildRecipe) -> tuple[int, int]:
    """Pixels a latent's side, features a token: the base's if its configurations are at hand."""
    try:
        family = family_of(recipe.base)
        folder = configurations(recipe.base)
    except RequestError:
        return LATENT_FACTOR, TEXT_FEATURES["sd15"]
    if folder is None:
        return LATENT_FACTOR, TEXT_FEATURES.get(family, TEXT_FEATURES["sd15"])
    vae = read_configuration(folder / VAE.folder / "config.json")
    texts = [read_configuration(folder / t.folder / "config.json") for t in TEXTS[family]]
    # Every level of a VAE but the last halves the sides.
    return 2 ** (len(vae["block_out_channels"]) - 1), sum(t["hidden_size"] for t in texts)


def base_bytes(recipe: BuildRecipe) -> int | None:
    """The size of the base's weights; None while it is not there."""
    path = recipe.base.checkpoint
    if path.is_file():
        return path.stat().st_size
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*.safetensors"))
    return None
