"""Which bytes are a picture that can be trained on."""

import errno
import io
import struct
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.download.content import examine, thumbnail
from pipeline.download.header import EXTENSIONS, FOLDER_EXTENSIONS, Picture, Unusable, glance
from pipeline.recipe.dataset import MOST_PIXELS
from pipeline.size import Size


def check(path: Path, extensions: tuple[str, ...]) -> Picture:
    return examine(path, extensions, MOST_PIXELS)[0]


def encoded(kind: str, size: tuple[int, int] = (48, 32), **options) -> bytes:
    noise = np.random.default_rng(3).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind, **options)
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_the_type_is_told_by_the_bytes(tmp_path: Path, kind: str, extension: str) -> None:
    path = tmp_path / "name.that.lies"
    path.write_bytes(encoded(kind))
    picture = check(path, EXTENSIONS)
    assert (picture.extension, picture.size) == (extension, Size(48, 32))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.99])
def test_a_picture_cut_anywhere_is_unusable(tmp_path: Path, kind: str, share: float) -> None:
    whole = encoded(kind)
    path = tmp_path / "cut"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(Unusable):
        check(path, EXTENSIONS)


def test_a_flipped_bit_in_a_png_is_found_by_its_checksum(tmp_path: Path) -> None:
    whole = bytearray(encoded("PNG"))
    whole[len(whole) // 2] ^= 1
    path = tmp_path / "rotten.png"
    path.write_bytes(whole)
    with pytest.raises(Unusable):
        check(path, EXTENSIONS)


@pytest.mark.parametrize("kind", ["GIF", "BMP"])
def test_other_types_are_for_folders_only(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(encoded(kind))
    assert check(path, FOLDER_EXTENSIONS).extension == kind.lower()
    with pytest.raises(Unusable, match="not one of jpg, png, webp"):
        check(path, EXTENSIONS)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_animated_pictures_are_unusable(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    path = tmp_path / "moving"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(Unusable, match="animated"):
        check(path, FOLDER_EXTENSIONS)


@pytest.mark.parametrize("look", [glance, examine])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, look) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(30_000, 30_000))
    with pytest.raises(Unusable, match="30000x30000 pixels are more than the 120,000,000"):
        look(path, EXTENSIONS, MOST_PIXELS)
    path.write_bytes(encoded("PNG"))
    assert look(path, EXTENSIONS, 48 * 32)
    with pytest.raises(Unusable, match="48x32 pixels are more than the 1,535"):
        look(path, EXTENSIONS, 48 * 32 - 1)


def test_a_glance_decodes_nothing(tmp_path: Path) -> None:
    """What is cut off passes a glance, which is why all files are examined later."""
    path = tmp_path / "cut.png"
    path.write_bytes(png_of(900, 700))
    assert glance(path, EXTENSIONS, MOST_PIXELS).size == Size(900, 700)
    with pytest.raises(Unusable, match="does not decode"):
        examine(path, EXTENSIONS, MOST_PIXELS)


def test_a_thumbnail_is_turned_and_lies_on_white(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200), "red").save(tmp_path / "a.jpg", exif=exif)
    small = thumbnail(tmp_path / "a.jpg", EXTENSIONS, MOST_PIXELS, 100)
    assert small.size == (50, 100)
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    clear = thumbnail(tmp_path / "clear.png", EXTENSIONS, MOST_PIXELS, 100)
    assert clear.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize(("content", "words"), [(b"", "empty"), (b"<html>", "not one of")])
def test_what_is_no_picture_is_unusable(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(Unusable, match=words):
        check(path, EXTENSIONS)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_bomb_in_a_text_chunk_is_not_unpacked(tmp_path: Path, kind: bytes) -> None:
    """A hundred megabytes of nothing, packed into a hundred kilobytes."""
    packed = b"name\0\0" + zlib.compress(bytes(100_000_000), 9)
    chunk = struct.pack(">I", len(packed)) + kind + packed
    chunk += struct.pack(">I", zlib.crc32(kind + packed))
    whole = encoded("PNG")
    path = tmp_path / "bomb.png"
    path.write_bytes(whole[:33] + chunk + whole[33:])
    tracemalloc.start()
    try:
        with suppress(Unusable):
            check(path, EXTENSIONS)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
@pytest.mark.parametrize("look", [examine, lambda *asked: thumbnail(*asked, 8)])
def test_no_picture_is_judged_by_a_machine_that_cannot_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, look
) -> None:
    """The header is read, and then the disk fails, or one file more cannot be opened."""
    path = tmp_path / "sound.png"
    path.write_bytes(encoded("PNG"))

    def failing(*asked, **named):
        raise OSError(number, "as it happens")

    monkeypatch.setattr("pipeline.download.content.open", failing, raising=False)
    with pytest.raises(OSError, match="as it happens") as error:
        look(path, EXTENSIONS, MOST_PIXELS)
    assert error.value.errno == number
