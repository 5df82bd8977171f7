"""Pictures with their captions into a folder of PICTURE + .txt pairs, as kohya's scripts read it.

urushi caption RECIPE --export kohya FOLDER
"""

from collections.abc import Iterable
from pathlib import Path

from pipeline.artefacts.files import share, write_text
from pipeline.artefacts.records import CaptionRecord, ImageRecord
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.progress import Progress


def export_pairs(
    folder: DatasetFolder,
    images: Iterable[ImageRecord],
    captions: Iterable[CaptionRecord],
    out: Path,
    progress: Progress,
) -> int:
    """Writes `out`/MD5.ext (hard links where the disk can) and MD5.txt; returns how many pairs.

    What is there already is written anew; other files in `out` are left alone.

    Raises:
        DiskFullError, RequestError: `out` cannot be written.
    """
    texts = {record.md5: record.caption for record in captions}
    pairs = [image for image in images if image.md5 in texts]
    with progress.bar("export", len(pairs), "pictures") as bar:
        for image in pairs:
            source = folder.root / image.path  # An absolute path stays what it is.
            share(source, out / f"{image.md5}{source.suffix.lower()}")
            write_text(out / f"{image.md5}.txt", texts[image.md5] + "\n")
            bar.advance()
    return len(pairs)
