"""Images into captions: tags and score, by the rules of the dataset recipe's [caption].

    urushi caption RECIPE

Captions are derived: a changed rule writes them anew, in another folder, and touches nothing else.
"""

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.artefacts.chain import (
    CAPTIONS_FILE,
    FORMERS_FILE,
    IMAGES_FILE,
    caption_fingerprint,
    images_receipt,
    tags_fingerprint,
)
from pipeline.artefacts.identity import Identities
from pipeline.artefacts.job import Job, Outcome
from pipeline.artefacts.locks import locked
from pipeline.artefacts.receipts import Receipt, done, write_receipt
from pipeline.artefacts.records import (
    ImageRecord,
    read_former_names,
    read_records,
    write_records,
)
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.caption.rules import (
    Rules,
    Written,
    artists_can_be_told,
    compile_rules,
    write_caption,
)
from pipeline.caption.variation import parted
from pipeline.caption.words import is_young, quality_words
from pipeline.errors import UrushiError
from pipeline.progress import Progress
from pipeline.recipe import DatasetRecipe

_BATCH = 500
"""Captions between two movements of the bar."""


def run(job: Job, progress: Progress) -> Outcome:
    """Captions of every dataset of `job`.

    Raises:
        RequestError: a dataset has no pictures yet.
        UrushiError: artists cannot be told from other tags, or a record is damaged.
    """
    already, lines = True, []
    for _, dataset in job.datasets:
        folder = job.dataset_folder(dataset)
        images = images_receipt(job, dataset)
        identities = job.workspace.identities
        fingerprint = caption_fingerprint(dataset, images, identities)
        receipt = done(folder.captions(fingerprint), fingerprint)
        if receipt is None:
            already = False
            receipt = _caption(dataset, folder, images, identities, fingerprint, progress)
        lines.append(f"{dataset.name}: {receipt.summary['captions']:,} captions")
    return Outcome("caption", already, ", ".join(lines))


def _caption(
    dataset: DatasetRecipe,
    folder: DatasetFolder,
    found: Receipt,
    identities: Identities,
    fingerprint: str,
    progress: Progress,
) -> Receipt:
    started = time.monotonic()
    with locked(folder.root):
        images, rules = images_and_rules(dataset, folder, found, identities, progress)
        written = write_all(dataset.name, images, rules, progress)
        captions = folder.captions(fingerprint) / CAPTIONS_FILE
        write_records(captions, (one.record for one in written))
        receipt = write_receipt(
            captions.parent,
            "caption",
            fingerprint,
            inputs={
                "images": found.outputs[IMAGES_FILE].blake3,
                "rules": dataset.caption.model_dump(mode="json"),
            },
            outputs=[captions],
            summary=_summary(dataset, images, written),
            seconds=time.monotonic() - started,
        )
    _say(dataset, receipt.summary, progress)
    return receipt


def images_and_rules(
    dataset: DatasetRecipe,
    folder: DatasetFolder,
    found: Receipt,
    identities: Identities,
    progress: Progress,
) -> tuple[list[ImageRecord], Rules]:
    """The dataset's pictures in the order of md5, with a tagger's tags where the recipe asks for
    one, and its rules. `found`: the receipt of the pictures. Hold the dataset's lock.

    Raises:
        RequestError: the tagger cannot be used.
        UrushiError: artists cannot be told from other tags, a rating is wider than asked for, or a
            record is damaged.
    """
    images = sorted(
        read_records(folder.images / IMAGES_FILE, ImageRecord), key=lambda image: image.md5
    )
    _check(dataset, folder, images)
    if dataset.tagger is not None:
        # Imported here: pictures that come with tags need neither numpy nor an ONNX runtime.
        from pipeline.caption.tagging import seen, with_tags

        said = seen(
            dataset.tagger,
            images,
            folder,
            tags_fingerprint(dataset.tagger, found, identities),
            progress,
        )
        unread = [record for record in said.values() if record.failure]
        if unread:
            progress.say(
                f"{dataset.name}: {len(unread):,} pictures could not be tagged, such as "
                f"{unread[0].md5}: {unread[0].failure}"
            )
        images = with_tags(images, said, dataset.tagger)
    return with_rules(dataset, folder, images)


def with_rules(
    dataset: DatasetRecipe, folder: DatasetFolder, images: list[ImageRecord]
) -> tuple[list[ImageRecord], Rules]:
    """`images` with tags as the rules want them, and the rules for them.

    Raises:
        UrushiError: the record of former names is damaged.
    """
    separator = dataset.caption.variation.separator
    if separator is not None:
        images = [parted(image, separator) for image in images]
    return images, compile_rules(
        dataset.caption,
        images,
        from_booru=dataset.download is not None,
        former_names=read_former_names(folder.images / FORMERS_FILE),
    )


def _check(dataset: DatasetRecipe, folder: DatasetFolder, images: Sequence[ImageRecord]) -> None:
    if dataset.download is None:
        return
    if images and not artists_can_be_told(images):
        raise UrushiError(
            f"The tags of {dataset.name} came without categories, so artist names cannot be told "
            "from other tags, and they must not reach a caption. Is "
            f"{dataset.download.host or dataset.download.site} really a "
            f"{dataset.download.site} site? Pictures with tags of your own go in by [folder]."
        )
    # Ratings are asked for in the query and checked when posts arrive; this is the last look before
    # a picture can be trained on. Sites write "general" or "g": the first letters are enough.
    asked = {rating[0] for rating in dataset.download.ratings}
    wider = [image for image in images if image.rating[:1].lower() not in asked]
    if wider:
        raise UrushiError(
            f"Pictures of {dataset.name} with a rating that [download].ratings does not list: "
            f"{len(wider):,}, such as {wider[0].md5} ({wider[0].rating or 'none'}). Delete "
            f"{folder.images / 'receipt.json'} and run `urushi download` again."
        )


def write_all(
    name: str, images: Sequence[ImageRecord], rules: Rules, progress: Progress
) -> list[Written]:
    """Captions of `images`; the disk is left as it is."""
    written: list[Written] = []
    with progress.bar(f"caption {name}", len(images), "captions") as bar:
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            written += [write_caption(image, rules) for image in batch]
            bar.advance(len(batch))
    return written


def _summary(
    dataset: DatasetRecipe, images: Sequence[ImageRecord], written: Sequence[Written]
) -> dict[str, Any]:
    words = Counter(one.word for one in written)
    table = {word: words[word] for word in (*quality_words(dataset.caption), "")}
    naming = Counter(tag for one in written for tag, why in one.dropped if why == "names an artist")
    return {
        "captions": len(written),
        "quality": table,
        "without_score": sum(image.score is None for image in images),
        "young_scores": sum(
            image.score is not None and is_young(image, dataset.caption.score_age_hours)
            for image in images
        ),
        "without_tags": sum(not any(image.tags.values()) for image in images),
        "shortened": sum(any(c.what == "cut" for c in one.changes) for one in written),
        "empty": sum(not one.record.caption for one in written),
        "dropped": dict(sorted(Counter(why for one in written for _, why in one.dropped).items())),
        # So that someone can see which harmless tags an artist's name took along.
        "naming_artists": dict(naming.most_common(20)),
    }


def _say(dataset: DatasetRecipe, summary: dict[str, Any], progress: Progress) -> None:
    """The table that a person should see before training, and whatever looks wrong."""
    total = summary["captions"]
    if summary["without_score"] == total:
        progress.say(f"{dataset.name}: {total:,} captions; no scores, so no quality words")
    else:
        progress.say(f"{dataset.name}: {total:,} captions, by quality word:")
        asked = quality_words(dataset.caption)
        for word, count in summary["quality"].items():
            reason = asked.get(word, "below, or no score")
            share = count / total
            progress.say(f"  {word or '(none)':<16} {count:>8,}  {share:>4.0%}  {reason}")
    if summary["young_scores"]:
        progress.say(
            f"  scores read less than {dataset.caption.score_age_hours:g} h after the post, "
            f"not used: {summary['young_scores']:,}"
        )
    if summary["without_tags"]:
        progress.say(f"  pictures without any tag: {summary['without_tags']:,}")
    if summary["shortened"]:
        progress.say(
            f"  captions of more than {dataset.caption.max_tokens} tokens: "
            f"{summary['shortened']:,}; {summary['dropped']['cut']:,} tags at their ends are left "
            "out (`urushi caption --explain MD5` shows which)"
        )
    if summary["empty"]:
        progress.say(f"  empty captions: {summary['empty']:,}")
    if "artist" not in dataset.caption.drop_categories:
        progress.say(
            '  [caption].drop_categories does not list "artist"; '
            "artist names are left out all the same"
        )
