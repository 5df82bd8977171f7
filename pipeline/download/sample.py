"""A few of the pictures that a search finds into one sheet, to look at before the long run.

urushi download RECIPE --sample 20

Which ones is drawn by lot from a seed, so that the same recipe shows the same pictures again; those
that are not here yet are fetched, and the download counts them as here.
"""

import hashlib
import heapq
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageDraw

from pipeline.artefacts.chain import IMAGES_FILE
from pipeline.artefacts.files import write_bytes
from pipeline.artefacts.records import ImageRecord, read_records
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download.booru import Visit
from pipeline.download.content import thumbnail
from pipeline.download.header import FOLDER_EXTENSIONS, Unusable
from pipeline.errors import UrushiError
from pipeline.size import Size

COLUMNS = 5
SIDE = 240
"""Pixels that a picture may take each way."""
GAP = 8
"""Pixels between pictures, and around them."""
LINE = 14
"""Pixels of a line of text."""
SEED = 0
SHEET = "sample.png"


Item = TypeVar("Item")


@dataclass(frozen=True)
class Tile:
    """A picture of the sheet, with the words under it."""

    path: Path
    words: tuple[str, ...]


def sample_booru(visit: Visit, count: int) -> Path:
    """Draws `count` pictures of `visit`'s search, fetching what is missing; returns the sheet.

    Raises:
        UrushiError: the site is down, or none of them could be had.
        RequestError, DiskFullError: as a download.
    """
    choice, _ = visit.choose(visit.read())
    lost = ("gone", "hidden", "refused", "bad_content")
    drawn = drawn_by_lot(
        (item for item in choice.wanted() if item.state not in lost), lambda item: item.md5, count
    )
    todo = visit.originals.todo(drawn)
    if todo.files:
        done = len(drawn) - todo.files
        with visit.progress.bar(f"{visit.what}: sample", len(drawn), "pictures", done) as bar:
            visit.originals.settle(drawn, todo, bar)
    chosen = {item.md5 for item in drawn}
    facts = {
        item.md5: post for item in drawn for post in choice.facts(item.md5)
    }  # The newest post's, which come last.
    tiles = []
    for item in choice.wanted():
        if item.md5 not in chosen:
            continue
        name = f"{visit.store.site}:{item.post_id}"
        if item.state != "have":
            visit.progress.say(f"{name} is not on the sheet: {item.state}: {item.reason}")
            continue
        path = visit.folder.original(item.md5, item.extension or "")
        tiles.append(Tile(path, (name, _words(facts[item.md5].score, item.size))))
    return _written(visit.folder, tiles, visit.rules.most_pixels)


def sample_folder(folder: DatasetFolder, count: int, most_pixels: int) -> Path:
    """Draws `count` pictures of a [folder] that was recorded; returns the sheet.

    Raises:
        UrushiError: the pictures were never recorded, or cannot be read any more.
    """
    records = read_records(folder.images / IMAGES_FILE, ImageRecord)
    drawn = drawn_by_lot(records, lambda record: record.md5, count)
    tiles = [
        Tile(folder.root / record.path, (record.source, f"{record.width}x{record.height}"))
        for record in drawn
    ]
    return _written(folder, tiles, most_pixels)


def drawn_by_lot(
    items: Iterable[Item], md5: Callable[[Item], str], count: int, seed: int = SEED
) -> list[Item]:
    """`count` of `items`, each as likely as any other; one item more changes at most one."""

    def lot(item: Item) -> bytes:
        return hashlib.blake2b(f"{seed} {md5(item)}".encode(), digest_size=8).digest()

    return heapq.nsmallest(count, items, key=lot)


def sheet(tiles: Sequence[Tile], most_pixels: int) -> Image.Image:
    """The pictures in rows of COLUMNS, their words under them."""
    rows = -(-len(tiles) // COLUMNS)
    columns = min(COLUMNS, len(tiles))
    lines = max(len(tile.words) for tile in tiles)
    width, height = SIDE + GAP, SIDE + LINE * lines + GAP
    page = Image.new("RGB", (columns * width + GAP, rows * height + GAP), "white")
    draw = ImageDraw.Draw(page)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * width, GAP + row * height
        words = tile.words
        try:
            picture = thumbnail(tile.path, FOLDER_EXTENSIONS, most_pixels, SIDE)
            place = (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2)
            page.paste(picture, place)
        except (Unusable, OSError) as error:
            draw.rectangle((left, top, left + SIDE, top + SIDE), outline="grey")
            words = (words[0], str(error)[:40])
        for line, text in enumerate(words):
            draw.text((left, top + SIDE + line * LINE), text, fill="black")
    return page


def _written(folder: DatasetFolder, tiles: Sequence[Tile], most_pixels: int) -> Path:
    if not tiles:
        raise UrushiError(
            "Not one picture of the sample could be had. Run `urushi download` to see why."
        )
    buffer = io.BytesIO()
    sheet(tiles, most_pixels).save(buffer, "PNG")
    path = folder.root / SHEET
    write_bytes(path, buffer.getvalue())
    return path


def _words(score: int | None, size: Size) -> str:
    return f"{size}" if score is None else f"{size}, score {score}"
