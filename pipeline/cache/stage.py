"""Bucketed pictures and captions into shards of latents and text embeddings.

    urushi cache RECIPE

Latents are the VAE's posteriors, unscaled; texts the text encoders' hidden states, with those of
the empty caption under md5 "". What is finished loads no model. Texts are not cached for a build
whose text encoders learn from its first round on: it encodes captions as it trains.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.artefacts import chain
from pipeline.artefacts.executor import Executor, Processes
from pipeline.artefacts.job import Job, Outcome, too_early
from pipeline.artefacts.locks import locked
from pipeline.artefacts.masks import Mask, masks_of
from pipeline.artefacts.receipts import Receipt, done
from pipeline.artefacts.records import (
    CaptionRecord,
    ImageRecord,
    LatentRecord,
    ResizedRecord,
    TextRecord,
    each_record,
)
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.cache.encoders import LatentModel, TextModel
from pipeline.cache.inputs import latent_inputs, text_inputs
from pipeline.cache.plan import (
    OVERLONG,
    UNMASKED,
    Look,
    Text,
    latent_shards,
    text_row_bytes,
    text_shards,
)
from pipeline.cache.prune import prune
from pipeline.cache.shards import Work, make
from pipeline.models.components import TEXTS
from pipeline.models.configurations import fetched_configurations
from pipeline.models.family import family_of
from pipeline.models.layout import read_configuration
from pipeline.models.places import EMPTY_CAPTION, CacheFolders, cache_folders
from pipeline.models.vae import check_arithmetic, vae_source
from pipeline.progress import Progress
from pipeline.recipe import DatasetRecipe


@dataclass(frozen=True)
class _Caching:
    """One dataset's share of the stage."""

    job: Job
    dataset: DatasetRecipe
    folders: CacheFolders
    progress: Progress

    def latents_done(self) -> Receipt | None:
        return done(self.folders.latents, self.folders.latents_fingerprint)

    def text_done(self) -> Receipt | None:
        return done(self.folders.text, self.folders.text_fingerprint)

    def executor(self) -> Executor:
        """By default a process for each GPU, and this one where there is one or none."""
        if self.job.executor is not None and not isinstance(self.job.executor, Processes):
            return self.job.executor
        from torch.cuda import device_count

        asked = self.job.executor.processes if self.job.executor is not None else device_count()
        return Processes(max(1, asked), devices=device_count())


def run(job: Job, progress: Progress) -> Outcome:
    """Caches every dataset of the job.

    Raises:
        RequestError: an earlier stage has not run, or the base is wrong.
        UrushiError: not one picture, or not the empty caption, could be encoded.
    """
    already, lines = True, []
    wants_text = job.recipe.caches_text
    cachings = [
        _Caching(job, dataset, cache_folders(job, dataset), progress) for _, dataset in job.datasets
    ]
    for caching in cachings:
        _check_inputs(caching)
    for caching in cachings:
        dataset = caching.dataset
        latents, text = caching.latents_done(), caching.text_done()
        if latents is None or (text is None and wants_text):
            already = False
            with locked(job.dataset_folder(dataset).root):
                latents = caching.latents_done() or _make_latents(caching)
                if wants_text:
                    text = caching.text_done() or _make_text(caching)
                prune(
                    job.dataset_folder(dataset),
                    job.recipe.cache.keep,
                    {caching.folders.latents, caching.folders.text},
                    progress,
                )
            _report(caching, latents, text if wants_text else None)
        line = (
            f"{dataset.name}: {latents.summary['latents']} latents in "
            f"{latents.summary['shards']} shards"
        )
        for count in UNMASKED.values():
            if whole := latents.summary.get(count, 0):
                line += f", {whole} {count.replace('_', ' ')}"
        if text is not None and wants_text:
            line += f", {text.summary['text']} texts in {text.summary['shards']}"
        else:
            line += ", no texts: they are encoded as the text encoders learn"
        lines.append(line)
    return Outcome("cache", already, "; ".join(lines))


def _check_inputs(caching: _Caching) -> None:
    """That what is read is there: before hours of another dataset, or of pictures, are spent.

    Raises:
        RequestError: an earlier stage has not run.
    """
    job, folders, name = caching.job, caching.folders, caching.dataset.name
    if not caching.latents_done() and not done(folders.resized, folders.resized_fingerprint):
        lacking = f"The pictures of {name} are not resized yet"
        raise too_early(job, lacking, folders.resized, "resize")
    wants_text = job.recipe.caches_text and not caching.text_done()
    if wants_text and not done(folders.captions, folders.captions_fingerprint):
        lacking = f"The captions of {name} are not written yet"
        raise too_early(job, lacking, folders.captions, "caption")


def _make_latents(caching: _Caching) -> Receipt:
    job, folders = caching.job, caching.folders
    base, settings = job.recipe.base, job.recipe.cache
    check_arithmetic(job.recipe)
    pictures: Iterable[ResizedRecord] = each_record(
        folders.resized / chain.INDEX_FILE, ResizedRecord
    )
    kept, folder = job.recipe.resize.keep, job.dataset_folder(caching.dataset)
    if kept and settings.masks == "alpha":
        # Stored pictures lie on white: only the originals say what of them is transparent.
        pictures, kept = _as_originals(pictures, folder), False
    source = folders.resized if kept else folder.root
    work = Work(
        folder=folders.latents,
        stage="latents",
        fingerprint=folders.latents_fingerprint,
        cache=folders.latents_apart,
        inputs=latent_inputs(job, caching.dataset),
        shards=latent_shards(
            pictures, vae_source(base, settings.vae).settings(), settings, _masks(caching)
        ),
        model=LatentModel(
            base,
            settings.vae,
            source,
            kept,
            settings.masks,
            settings.batch_size,
            settings.arithmetic,
            settings.compile,
        ),
        source=f"{source} and the VAE of {settings.vae or base.checkpoint}",
        what=f"latents of {caching.dataset.name}",
        unit="picture",
    )
    return make(work, caching.executor(), _latent_record, caching.progress)


def _masks(caching: _Caching) -> Mapping[str, Mask]:
    if caching.job.recipe.cache.masks != "files":
        return {}
    return masks_of(caching.dataset, caching.job.dataset_folder(caching.dataset))


def _as_originals(
    pictures: Iterable[ResizedRecord], folder: DatasetFolder
) -> Iterator[ResizedRecord]:
    """Resized pictures, as if only their places were known."""
    images = each_record(folder.images / chain.IMAGES_FILE, ImageRecord)
    paths = {image.md5: image.path for image in images}
    for record in pictures:
        yield record.model_copy(update={"file": paths[record.md5]})


def _make_text(caching: _Caching) -> Receipt:
    job, folders = caching.job, caching.folders
    base = job.recipe.base
    captions = each_record(folders.captions / chain.CAPTIONS_FILE, CaptionRecord)
    row_bytes = text_row_bytes(_text_configurations(job), base.tokens // 75)
    work = Work(
        folder=folders.text,
        stage="text",
        fingerprint=folders.text_fingerprint,
        cache=folders.text_fingerprint,
        inputs=text_inputs(job, caching.dataset),
        shards=text_shards(captions, row_bytes, job.recipe.cache.shard_megabytes),
        model=TextModel(base),
        source=f"the text encoder of {base.checkpoint}",
        what=f"texts of {caching.dataset.name}",
        unit="caption",
        required=frozenset({EMPTY_CAPTION}),
    )
    return make(work, caching.executor(), _text_record, caching.progress)


def _text_configurations(job: Job) -> Sequence[dict[str, Any]]:
    folder = fetched_configurations(job.recipe.base)
    texts = TEXTS[family_of(job.recipe.base)]
    return [read_configuration(folder / text.folder / "config.json") for text in texts]


def _latent_record(item: Look, shard: str, row: int) -> LatentRecord:
    return LatentRecord(
        md5=item.md5,
        shard=shard,
        row=row,
        width=item.bucket.width,
        height=item.bucket.height,
        original_width=item.original.width,
        original_height=item.original.height,
        crop_left=item.left,
        crop_top=item.top,
        variant=item.variant,
    )


def _text_record(item: Text, shard: str, row: int) -> TextRecord:
    return TextRecord(md5=item.md5, shard=shard, row=row, variant=item.variant)


def _report(caching: _Caching, latents: Receipt, text: Receipt | None) -> None:
    """Says what a person should know: what failed, what has no partner, what is cut."""
    name, folders, say = caching.dataset.name, caching.folders, caching.progress.say
    if failures := latents.summary["failures"]:
        say(f"{name}: {failures} pictures failed: {folders.latents / chain.FAILURES_FILE}")
    for count in UNMASKED.values():
        if whole := latents.summary.get(count, 0):
            say(
                f"{name}: {whole} of {latents.summary['latents']} latents are of pictures "
                f"{count.replace('_', ' ')}: their masks count all of them"
            )
    if text is None:
        return
    if failures := text.summary["failures"]:
        say(f"{name}: {failures} captions failed: {folders.text / chain.FAILURES_FILE}")
    if cut := text.summary.get(OVERLONG, 0):
        say(
            f"{name}: {cut} captions are longer than the {caching.job.recipe.base.tokens} tokens "
            "of [base].tokens: their ends are cut"
        )
    pictures = {r.md5 for r in each_record(folders.latents / chain.INDEX_FILE, LatentRecord)}
    captions = {r.md5 for r in each_record(folders.text / chain.INDEX_FILE, TextRecord)}
    captions.discard(EMPTY_CAPTION)
    if bare := len(pictures - captions):
        say(f"{name}: {bare} pictures have no caption and are left out of training")
    if alone := len(captions - pictures):
        say(f"{name}: {alone} captions have no picture and are left out of training")
