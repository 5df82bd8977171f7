"""A dataset's pictures into tags on disk, in shards: a long tagging resumes where it stopped.

What the model says is kept down to small probabilities: thresholds and mode are applied when
captions are written, and can be changed without looking at a picture again.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from pipeline.artefacts.files import sweep
from pipeline.artefacts.receipts import done, write_receipt
from pipeline.artefacts.records import ImageRecord, Record, read_records, write_records
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.caption.tagger import Guess, Pixels, Tagger, chosen, model_folder, prepared
from pipeline.progress import Bar, Progress
from pipeline.recipe.caption import Tagger as TaggerSection

SHARD = 256
"""Pictures in a file: the most that a kill costs."""
LEAST = 0.05
"""Probability below which nobody would set a threshold."""


class SeenRecord(Record):
    """What the tagger says of one picture, of LEAST and more."""

    md5: str
    tags: tuple[tuple[str, str, float], ...]
    """(category, tag, probability) in the model's order."""
    failure: str = ""
    """Why the picture could not be looked at; "" where it could."""


def seen(
    section: TaggerSection,
    images: Sequence[ImageRecord],
    folder: DatasetFolder,
    fingerprint: str,
    progress: Progress,
) -> dict[str, SeenRecord]:
    """What the tagger says of each picture, by md5; only what is not known yet is looked at.

    Hold the dataset's lock.

    Raises:
        RequestError: the model cannot be used.
    """
    place = folder.tags(fingerprint)
    sweep(place)
    records: dict[str, SeenRecord] = {}
    tagger: Tagger | None = None
    shards = [images[start : start + SHARD] for start in range(0, len(images), SHARD)]
    with progress.bar(f"tag {folder.root.name}", len(images), "pictures") as bar:
        for number, shard in enumerate(shards):
            file, receipt = place / f"{number:05d}.jsonl", f"{number:05d}.receipt.json"
            if done(place, fingerprint, receipt) is None:
                if tagger is None:
                    tagger = Tagger(model_folder(section.model))
                _tag_shard(tagger, section, shard, folder, file, fingerprint, receipt, bar)
            else:
                bar.advance(len(shard))
            records |= {record.md5: record for record in read_records(file, SeenRecord)}
    return records


def _tag_shard(
    tagger: Tagger,
    section: TaggerSection,
    shard: Sequence[ImageRecord],
    folder: DatasetFolder,
    file: Path,
    fingerprint: str,
    receipt: str,
    bar: Bar,
) -> None:
    started = time.monotonic()
    found: list[SeenRecord] = []
    for start in range(0, len(shard), section.batch_size):
        batch = shard[start : start + section.batch_size]
        pictures: dict[str, Pixels] = {}
        for image in batch:
            try:
                pictures[image.md5] = prepared(folder.root / image.path, tagger.side)
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                found.append(SeenRecord(md5=image.md5, tags=(), failure=f"unreadable: {error}"))
        if pictures:
            for md5, guesses in zip(pictures, tagger(list(pictures.values())), strict=True):
                tags = [
                    (g.category, g.tag, round(g.probability, 4))
                    for g in guesses
                    if g.probability >= LEAST
                ]
                found.append(SeenRecord(md5=md5, tags=tuple(tags)))
        bar.advance(len(batch))
    write_records(file, found)
    write_receipt(
        file.parent,
        "tags",
        fingerprint,
        inputs={"pictures": len(shard)},
        outputs=[file],
        summary={"failures": sum(bool(record.failure) for record in found)},
        seconds=time.monotonic() - started,
        name=receipt,
    )


def with_tags(
    images: Iterable[ImageRecord], said: Mapping[str, SeenRecord], section: TaggerSection
) -> list[ImageRecord]:
    """The pictures with the tagger's tags in, as the section's mode says. Artist, series and meta
    tags are never the tagger's to change."""
    return [_with_tags(image, said.get(image.md5), section) for image in images]


def _with_tags(
    image: ImageRecord, record: SeenRecord | None, section: TaggerSection
) -> ImageRecord:
    bare = not any(image.tags.values())
    if record is None or record.failure or (section.mode == "only missing" and not bare):
        return image
    guesses = [Guess(*tag) for tag in record.tags]
    tags = {category: list(names) for category, names in image.tags.items()}
    if section.mode == "replace":
        tags["general"], tags["character"] = [], []
    there = {name.casefold() for names in tags.values() for name in names}
    for guess in chosen(guesses, section.general, section.character):
        if guess.tag.casefold() not in there:
            tags.setdefault(guess.category, []).append(guess.tag)
    return image.model_copy(
        update={"tags": {category: tuple(names) for category, names in tags.items() if names}}
    )
