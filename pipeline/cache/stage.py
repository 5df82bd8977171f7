"""Bucketed pictures and captions into shards of latents and text embeddings.

    urushi cache RECIPE

Latents are the VAE's posteriors, unscaled; texts the text encoder's final hidden states, with those
of the empty caption under md5 "". What is finished loads no model.
"""

from dataclasses import dataclass

from pipeline.artefacts import chain
from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.locks import locked
from pipeline.artefacts.receipts import Receipt, done
from pipeline.artefacts.records import (
    CaptionRecord,
    LatentRecord,
    ResizedRecord,
    TextRecord,
    read_records,
)
from pipeline.cache.plan import OVERLONG, latent_shards, text_shards
from pipeline.cache.shards import Encode, Work, make
from pipeline.errors import RequestError
from pipeline.models.components import TEXT, VAE, Component
from pipeline.models.configurations import fetched_configurations
from pipeline.models.layout import read_configuration
from pipeline.models.places import EMPTY_CAPTION, CacheFolders, cache_folders
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


def run(job: Job, progress: Progress) -> Outcome:
    """Caches every dataset of the job.

    Raises:
        RequestError: an earlier stage has not run, or the base is wrong.
        UrushiError: not one picture, or not the empty caption, could be encoded.
    """
    already, lines = True, []
    for _, dataset in job.datasets:
        caching = _Caching(job, dataset, cache_folders(job, dataset), progress)
        latents, text = caching.latents_done(), caching.text_done()
        if latents is None or text is None:
            already = False
            with locked(job.dataset_folder(dataset).root):
                latents = caching.latents_done() or _make_latents(caching)
                text = caching.text_done() or _make_text(caching)
            _report(caching, latents, text)
        lines.append(
            f"{dataset.name}: {latents.summary['latents']} latents in "
            f"{latents.summary['shards']} shards, {text.summary['text']} texts in "
            f"{text.summary['shards']}"
        )
    return Outcome("cache", already, "; ".join(lines))


def _make_latents(caching: _Caching) -> Receipt:
    job, folders = caching.job, caching.folders
    if done(folders.resized, folders.resized_fingerprint) is None:
        raise RequestError(
            f"The pictures of {caching.dataset.name} are not resized yet. "
            "Run `urushi resize` first."
        )
    pictures = read_records(folders.resized / chain.INDEX_FILE, ResizedRecord)
    settings = job.recipe.cache
    work = Work(
        folder=folders.latents,
        stage="latents",
        fingerprint=folders.latents_fingerprint,
        inputs={"resized": folders.resized_fingerprint, "base": str(job.recipe.base.checkpoint)},
        shards=latent_shards(pictures, _configuration(job, VAE), settings.shard_megabytes),
        source=f"{folders.resized} and the VAE of {job.recipe.base.checkpoint}",
        what=f"latents of {caching.dataset.name}",
        unit="picture",
    )

    def encoder() -> Encode[ResizedRecord]:
        from accelerate import PartialState

        from pipeline.cache.latents import LatentEncoder
        from pipeline.models.load import load_vae

        # Not Accelerator(): it would fix the mixed precision of this whole process, which training
        # chooses later.
        device = PartialState().device
        vae = load_vae(job.recipe.base)
        return LatentEncoder(vae, folders.resized, settings.batch_size, device)

    return make(work, encoder, _latent_record, caching.progress)


def _make_text(caching: _Caching) -> Receipt:
    job, folders = caching.job, caching.folders
    if done(folders.captions, folders.captions_fingerprint) is None:
        raise RequestError(
            f"The captions of {caching.dataset.name} are not written yet. "
            "Run `urushi caption` first."
        )
    captions = read_records(folders.captions / chain.CAPTIONS_FILE, CaptionRecord)
    megabytes = job.recipe.cache.shard_megabytes
    work = Work(
        folder=folders.text,
        stage="text",
        fingerprint=folders.text_fingerprint,
        inputs={"captions": folders.captions_fingerprint, "base": str(job.recipe.base.checkpoint)},
        shards=text_shards(captions, _configuration(job, TEXT), megabytes),
        source=f"the text encoder of {job.recipe.base.checkpoint}",
        what=f"texts of {caching.dataset.name}",
        unit="caption",
        required=frozenset({EMPTY_CAPTION}),
    )

    def encoder() -> Encode[CaptionRecord]:
        from accelerate import PartialState

        from pipeline.cache.texts import TextEncoder
        from pipeline.models.load import load_text

        return TextEncoder(load_text(job.recipe.base).to(PartialState().device))

    return make(work, encoder, _text_record, caching.progress)


def _configuration(job: Job, component: Component) -> dict[str, object]:
    folder = fetched_configurations(job.recipe.base)
    return read_configuration(folder / component.folder / "config.json")


def _latent_record(item: ResizedRecord, shard: str, row: int) -> LatentRecord:
    return LatentRecord(
        md5=item.md5,
        shard=shard,
        row=row,
        width=item.width,
        height=item.height,
        original_width=item.original_width,
        original_height=item.original_height,
        crop_left=item.crop_left,
        crop_top=item.crop_top,
    )


def _text_record(item: CaptionRecord, shard: str, row: int) -> TextRecord:
    return TextRecord(md5=item.md5, shard=shard, row=row)


def _report(caching: _Caching, latents: Receipt, text: Receipt) -> None:
    """Says what a person should know: what failed, what has no partner, what is cut."""
    name, folders, say = caching.dataset.name, caching.folders, caching.progress.say
    if failures := latents.summary["failures"]:
        say(f"{name}: {failures} pictures failed: {folders.latents / chain.FAILURES_FILE}")
    if failures := text.summary["failures"]:
        say(f"{name}: {failures} captions failed: {folders.text / chain.FAILURES_FILE}")
    if cut := text.summary.get(OVERLONG, 0):
        say(f"{name}: {cut} captions are longer than the text encoder reads: their ends are cut")
    pictures = {r.md5 for r in read_records(folders.latents / chain.INDEX_FILE, LatentRecord)}
    captions = {r.md5 for r in read_records(folders.text / chain.INDEX_FILE, TextRecord)}
    captions.discard(EMPTY_CAPTION)
    if bare := len(pictures - captions):
        say(f"{name}: {bare} pictures have no caption and are left out of training")
    if alone := len(captions - pictures):
        say(f"{name}: {alone} captions have no picture and are left out of training")
