"""Which file is the mask of which picture, and what it holds: for `[cache].masks = "files"`.

Two customs are read as they are: OneTrainer's NAME-masklabel.png beside NAME.jpg, and the folder of
kohya's sd-scripts (`conditioning_data_dir`), where masks bear their pictures' names.
"""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.artefacts.chain import IMAGES_FILE
from pipeline.artefacts.identity import Identities, fingerprint
from pipeline.artefacts.receipts import Receipt
from pipeline.artefacts.records import ImageRecord, each_record
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.errors import RequestError
from pipeline.recipe import DatasetRecipe

LABEL = "-masklabel.png"
"""How the names of masks beside pictures end."""
SUFFIXES = frozenset((".png", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"))


class Mask(NamedTuple):
    """A picture's mask."""

    path: str
    """Absolute."""
    digest: str
    """BLAKE3 of the file."""


class MaskFile(NamedTuple):
    """A file that may be a mask, and what tells that it is still the same."""

    path: str
    bytes: int
    inode: int
    mtime: int
    """Nanoseconds."""


def is_label(name: str) -> bool:
    """Whether a file of this name beside pictures is a mask, and no picture."""
    return name.endswith(LABEL)


def mask_files(dataset: DatasetRecipe) -> list[MaskFile]:
    """Every file that may be a mask of one of the dataset's pictures, in order.

    Raises:
        RequestError: [masks].folder is not there, or cannot be read.
    """
    if dataset.masks is not None:
        root = dataset.masks.folder
        if not root.is_dir():
            raise RequestError(
                f"There is no folder {root} ([masks].folder of {dataset.name}). Paths in a recipe "
                "are meant from the recipe's own folder."
            )
        return sorted(_walk(root, _is_picture))
    if dataset.folder is not None and dataset.folder.path.is_dir():
        return sorted(_walk(dataset.folder.path, is_label))
    return []


def masks_digest(
    dataset: DatasetRecipe, folder: DatasetFolder, images: Receipt, identities: Identities
) -> str:
    """Of which picture has which mask: what the masks hold counts, and not where they lie.

    Raises:
        RequestError: as `mask_files` and `masks_of`.
    """
    what, noted = f"masks of {dataset.name}", images.outputs[IMAGES_FILE].blake3
    mark = [noted, fingerprint(files=mask_files(dataset))]
    known = identities.recall(what, mark)
    if known is None:
        masks = masks_of(dataset, folder)
        known = fingerprint(masks=[[md5, masks[md5].digest] for md5 in sorted(masks)])
        identities.keep(what, mark, known)
    return str(known)


def masks_of(dataset: DatasetRecipe, folder: DatasetFolder) -> dict[str, Mask]:
    """The masks of the dataset's pictures by md5; of those that have one.

    Raises:
        RequestError: [masks].folder is not there, holds nothing for any of them, holds two files
            for one, or holds the pictures themselves.
    """
    named: dict[str, list[Path]] = {}
    for file in mask_files(dataset):
        path = Path(file.path)
        named.setdefault(_key(dataset, path), []).append(path)
    paths: dict[str, Path] = {}
    looked_for: tuple[str, ...] = ()
    for image in each_record(folder.images / IMAGES_FILE, ImageRecord):
        looked_for = _names(dataset, image)
        found = [path for name in looked_for for path in named.get(name, [])]
        if len(found) > 1:
            raise RequestError(
                f"{found[0]} and {found[1]} are both masks of {image.source} ({image.md5}). "
                "Take one of them away."
            )
        if found and found[0] == folder.root / image.path:
            raise RequestError(
                f"{found[0]} is a picture of {dataset.name} and cannot be its own mask. Put masks "
                f"into a folder of their own for [masks], or name them NAME{LABEL} beside the "
                "pictures of a [folder] and leave [masks] out."
            )
        if found:
            paths[image.md5] = found[0]
    if dataset.masks is not None and not paths:
        names = " or ".join(f"{name}.png" for name in looked_for)
        raise RequestError(
            f"[masks].folder = {dataset.masks.folder} has no mask of any picture of "
            f"{dataset.name}; {names} would be one. Name masks like their pictures, or leave "
            "[masks] out."
        )
    try:
        digests = folder.masks.of_all(list(paths.values()))
    except OSError as error:
        raise RequestError(f"{error.filename} cannot be read: {error.strerror}.") from error
    return {
        md5: Mask(str(path), digest)
        for (md5, path), digest in zip(paths.items(), digests, strict=True)
    }


def _key(dataset: DatasetRecipe, path: Path) -> str:
    """What a mask's name says of which picture it is."""
    stem = path.name.removesuffix(LABEL) if is_label(path.name) else path.stem
    root = dataset.masks.folder if dataset.masks is not None else None
    if dataset.folder is None:
        return stem
    return (path.parent / stem).relative_to(root or dataset.folder.path).as_posix()


def _names(dataset: DatasetRecipe, image: ImageRecord) -> tuple[str, ...]:
    """What a picture's mask may be called."""
    if dataset.folder is None:
        return image.md5, image.source.rpartition(":")[2]
    place = Path(image.path).relative_to(dataset.folder.path.absolute())
    return (place.with_suffix("").as_posix(),)


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _walk(root: Path, wanted: Callable[[str], bool]) -> Iterator[MaskFile]:
    # Texts, and one question a file: there may be 50,000, looked through many times in a build.
    def refuse(error: OSError) -> None:
        raise RequestError(f"{error.filename} cannot be read: {error.strerror}.") from error

    for place, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.startswith(".") or not wanted(name):
                continue
            path = os.path.join(place, name)
            try:
                found = os.stat(path)
            except OSError:  # A dangling link is no mask.
                continue
            if stat.S_ISREG(found.st_mode):
                yield MaskFile(path, found.st_size, found.st_ino, found.st_mtime_ns)
