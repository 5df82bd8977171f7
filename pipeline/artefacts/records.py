"""The rows that stages hand to one another: one frozen record per boundary, JSON lines on disk."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.artefacts.files import atomic
from pipeline.errors import UrushiError


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ImageRecord(Record):
    """An original on disk and the facts that captions need. download -> caption, resize."""

    md5: str
    """Of the file's bytes; the image's name everywhere."""
    path: str
    """Relative to the dataset's folder, or absolute for pictures that stay in the user's folder."""
    width: int
    height: int
    """Pixels, as the source states them (0 where it does not)."""
    tags: dict[str, tuple[str, ...]]
    """Tag names as the source spells them, by category, in the source's order."""
    score: int | None
    rating: str
    source: str
    """Where it came from: "danbooru:123", or a file name."""
    created_at: str = ""
    """UTC, ISO 8601, when it was posted; "" where the source does not say."""
    scored_at: str = ""
    """UTC, ISO 8601, when its score was read; a month after it was posted, if that came first; ""
    where the source does not say when it was posted."""
    texts: tuple[str, ...] = ()
    """Sentences about it in its owner's words, beside its tags."""
    kin: tuple[str, ...] = ()
    """Its posts, and those that they are variants of: "danbooru:123". Pictures that share one are
    kept on one side of a held-out split."""


class LookRecord(Record):
    """How a picture looks, download -> rounds: for likenesses across the datasets of a build."""

    md5: str
    width: int
    height: int
    """Pixels."""
    likeness: int
    """64 bits of perceptual hash, as a signed number."""


class Alike(Record):
    """Pictures that look alike, download -> rounds: kept on one side of a held-out split, and for a
    person to judge. None of them is removed."""

    md5s: tuple[str, ...]


class FormerNames(Record):
    """What an artist's tag was called before, download -> caption: no caption may say it either."""

    artist: str
    former: tuple[str, ...]


class CaptionRecord(Record):
    """caption -> cache."""

    md5: str
    caption: str
    score: int | None
    """The score that chose the quality word; None where there is none, or it was too young."""
    texts: tuple[str, ...] = ()
    """What else may be shown as the picture's caption."""


class ResizedRecord(Record):
    """resize -> cache. A picture has one row for each bucket that it lies in."""

    md5: str
    file: str
    """Relative to the folder of the index; of a picture that is not kept, its original, as
    ImageRecord.path."""
    width: int
    height: int
    """The bucket, pixels."""
    original_width: int
    original_height: int
    """Pixels after the EXIF turn."""
    scaled_width: int
    scaled_height: int
    """Pixels of the whole picture after scaling, which the bucket is cut out of."""
    crop_left: int
    crop_top: int
    """Pixels cut off after scaling."""


class LatentRecord(Record):
    """cache -> train: row `row` of a latent shard.

    SDXL is conditioned on original size, crop and target size (Podell et al. 2023, arXiv
    2307.01952, section 2.2): (original_height, original_width), (crop_top, crop_left),
    (height, width).
    """

    md5: str
    shard: str
    """File name, relative to the folder of the index."""
    row: int
    width: int
    height: int
    """The bucket, pixels: the target size."""
    original_width: int
    original_height: int
    """Pixels after the EXIF turn."""
    crop_left: int
    crop_top: int
    """Pixels cut off after scaling; of a mirrored picture, as it is mirrored."""
    variant: int = 0
    """0 is the picture as it is; mirrored and recoloured ones follow."""


class TextRecord(Record):
    """cache -> train: row `row` of a text shard. The empty caption has md5 ""."""

    md5: str
    shard: str
    row: int
    variant: int = 0
    """0 is the caption as it is; shuffled and thinned ones, and other texts, follow."""


class Failure(Record):
    """An item that could not be done, and why; it does not stop its stage."""

    md5: str
    reason: str


AnyRecord = TypeVar("AnyRecord", bound=Record)


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Writes one JSON object a line, atomically, as `records` gives them: none is kept."""
    with atomic(path) as temporary, open(temporary, "wb") as handle:
        for record in records:
            handle.write(record.model_dump_json().encode() + b"\n")


def read_former_names(path: Path) -> dict[str, tuple[str, ...]]:
    """By artist; empty where no file says that one had another name. Raises as `each_record`."""
    if not path.exists():
        return {}
    return {record.artist: record.former for record in each_record(path, FormerNames)}


def read_records(path: Path, kind: type[AnyRecord]) -> list[AnyRecord]:
    """The records in `path`. Raises as `each_record`."""
    return list(each_record(path, kind))


def each_record(path: Path, kind: type[AnyRecord]) -> Iterator[AnyRecord]:
    """The records in `path` one after the other, for more than should be in memory at once.

    Raises:
        UrushiError: the file is missing or a line of it is not such a record.
    """
    try:
        handle = open(path, "rb")  # noqa: SIM115 - closed below; only its opening may lack a file
    except FileNotFoundError:
        raise UrushiError(f"{path} is missing. Run the stage that makes it again.") from None
    with handle:
        for number, line in enumerate(handle, 1):
            try:
                record = kind.model_validate_json(line)
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise UrushiError(
                    f"{path}, line {number} is damaged ({reason}). "
                    "Delete the file and run its stage again."
                ) from None
            yield record
