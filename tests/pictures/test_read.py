"""Every mode and every defect, through both engines."""

import errno
import io
import resource
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

import pipeline.pictures
from pipeline.errors import UrushiError
from pipeline.pictures import pillow
from pipeline.pictures.header import MAX_PIXELS, read_header
from pipeline.pictures.read import (
    Fitted,
    read_alpha,
    read_fitted,
    read_mask,
    read_places,
    vips_engine,
)
from pipeline.pictures.unreadable import Unreadable
from pipeline.resize.ladder import place
from pipeline.size import Size

Make = Callable[..., Image.Image]
Engine = ModuleType | None


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, kind, **options)
        return buffer.getvalue()


def fitted(content: bytes, folder: Path, engine: Engine, bucket: Size | None = None) -> Fitted:
    """The picture in `content` under a name that says nothing; in its own size without a bucket."""
    path = folder / "picture.txt"
    path.write_bytes(content)
    size = bucket or read_header(content).size
    (one,) = read_fitted(path, lambda picture: [place(picture, size)], engine=engine)
    return one


def pixels(one: Fitted) -> np.ndarray:
    return np.asarray(one.image).astype(float)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Decibels between two arrays of levels 0 to 255; infinite where they are equal."""
    error = float(np.mean((one.astype(float) - other.astype(float)) ** 2))
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def lanczos(levels: np.ndarray, size: Size) -> np.ndarray:
    """(H, W, 3) levels scaled to `size` in floats, nothing rounded or cut on the way."""
    channels = [
        Image.fromarray(np.ascontiguousarray(levels[..., channel]).astype(np.float32)).resize(
            size, Image.Resampling.LANCZOS
        )
        for channel in range(3)
    ]
    return np.clip(np.stack([np.asarray(channel) for channel in channels], axis=-1), 0, 255)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP"])
def test_plain_pixels_arrive_unchanged(
    picture: Make, tmp_path: Path, engine: Engine, kind: str
) -> None:
    image = picture(60, 40)
    options = {"lossless": True} if kind == "WEBP" else {}
    one = fitted(encoded(image, kind, **options), tmp_path, engine)
    assert np.array_equal(pixels(one), np.asarray(image))
    assert one.original == Size(60, 40)
    assert one.image.mode == "RGB"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_turns(picture: Make, tmp_path: Path, engine: Engine, kind: str) -> None:
    lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(kind, {})
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(picture(48, 32), kind, exif=exif, **lossless)
        with Image.open(io.BytesIO(content)) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        one = fitted(content, tmp_path, engine)
        assert one.original == upright.size == ((32, 48) if orientation >= 5 else (48, 32))
        assert np.array_equal(pixels(one), np.asarray(upright))


def test_a_nonsense_orientation_turns_nothing(
    picture: Make, tmp_path: Path, engine: Engine
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 42
    image = picture(48, 32)
    assert np.array_equal(pixels(fitted(encoded(image, "PNG", exif=exif), tmp_path, engine)), image)
    broken = encoded(image, "PNG", exif=b"Exif\0\0junkjunkjunk")
    assert np.array_equal(pixels(fitted(broken, tmp_path, engine)), image)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_lies_over_white(
    picture: Make, tmp_path: Path, engine: Engine, kind: str
) -> None:
    image = picture(60, 40, "RGBA")
    # exact: WebP would otherwise throw away colours that cannot be seen, which we lay bare.
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    levels = np.asarray(image).astype(float)
    cover = levels[..., 3:] / 255
    expected = levels[..., :3] * cover + 255 * (1 - cover)
    found = pixels(fitted(encoded(image, kind, **options), tmp_path, engine))
    assert np.abs(found - expected).max() <= 0.51


def test_transparent_grey_palette_and_colour_key(
    picture: Make, tmp_path: Path, engine: Engine
) -> None:
    clear = Image.new("LA", (8, 8), (10, 0))
    assert pixels(fitted(encoded(clear, "PNG"), tmp_path, engine)).min() == 255
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    assert pixels(fitted(encoded(palette, "PNG"), tmp_path, engine))[0, 0].tolist() == [
        200,
        100,
        50,
    ]
    assert pixels(fitted(encoded(palette, "GIF"), tmp_path, engine))[0, 0].tolist() == [
        200,
        100,
        50,
    ]
    keyed = encoded(palette, "PNG", transparency=1)
    assert pixels(fitted(keyed, tmp_path, engine)).min() == 255
    keyed = encoded(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert pixels(fitted(keyed, tmp_path, engine)).min() == 255
    grey = encoded(Image.new("L", (8, 8), 77), "PNG", transparency=77)
    assert pixels(fitted(grey, tmp_path, engine)).min() == 255


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("L", "JPEG"), ("1", "PNG"), ("L", "TIFF")]
)
def test_grey_becomes_three_equal_channels(
    picture: Make, tmp_path: Path, engine: Engine, mode: str, kind: str
) -> None:
    content = encoded(picture(40, 24, mode), kind)
    found = pixels(fitted(content, tmp_path, engine))
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(found, np.asarray(image.convert("RGB")))
    assert np.ptp(found, axis=-1).max() == 0


def png16(levels: np.ndarray) -> bytes:
    """(H, W, C) uint16 as a PNG, written by hand, since Pillow writes no 16-bit colours."""
    height, width, channels = levels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return png(struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0), zlib.compress(rows))


def png(header: bytes, data: bytes) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path, engine: Engine, channels: int) -> None:
    levels = np.random.default_rng(0).integers(0, 1 << 16, (16, 24, channels)).astype(np.uint16)
    found = pixels(fitted(png16(levels), tmp_path, engine))
    assert np.array_equal(found, np.broadcast_to(levels >> 8, (16, 24, 3)))


def test_sixteen_bits_with_transparency(tmp_path: Path, engine: Engine) -> None:
    levels = np.random.default_rng(0).integers(0, 1 << 16, (16, 24, 4)).astype(np.uint16)
    eight = (levels >> 8).astype(float)
    cover = eight[..., 3:] / 255
    found = pixels(fitted(png16(levels), tmp_path, engine))
    assert np.abs(found - (eight[..., :3] * cover + 255 * (1 - cover))).max() <= 0.51


def test_cmyk(tmp_path: Path, engine: Engine) -> None:
    ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    one = fitted(encoded(ink, "JPEG", quality=100), tmp_path, engine)
    assert np.abs(pixels(one) - (0, 255, 255)).max() <= 3


def wide_gamut() -> bytes:
    """An ICC profile whose red and green change places, so that obeying it shows; by hand.

    The sRGB profile that lcms makes names its primaries rXYZ, gXYZ and bXYZ in its tag table.
    """
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"-XYZ").replace(b"gXYZ", b"rXYZ").replace(b"-XYZ", b"gXYZ")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_profiles_are_obeyed(tmp_path: Path, engine: Engine, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    red = encoded(
        Image.new("RGB", (16, 16), (255, 0, 0)), kind, icc_profile=wide_gamut(), **options
    )
    found = pixels(fitted(red, tmp_path, engine))
    assert np.abs(found - (0, 255, 0)).max() <= 3


@pytest.mark.parametrize("profile", ["srgb", "junk", "grey"])
def test_profiles_that_say_nothing_change_nothing(
    picture: Make, tmp_path: Path, engine: Engine, profile: str
) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    made = {"srgb": srgb, "junk": b"junk" * 50, "grey": srgb.replace(b"RGB ", b"GRAY", 1)}[profile]
    image = picture(32, 32)
    one = fitted(encoded(image, "PNG", icc_profile=made), tmp_path, engine)
    assert np.array_equal(pixels(one), np.asarray(image))
    assert one.engine == ("pillow" if engine is None else "vips")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_files_are_failures(
    picture: Make, tmp_path: Path, engine: Engine, kind: str, share: float
) -> None:
    content = encoded(picture(200, 160), kind)
    with pytest.raises(Unreadable):
        fitted(content[: int(len(content) * share)], tmp_path, engine, Size(64, 32))


def test_a_file_cut_off_below_the_crop_is_cut_off(
    picture: Make, tmp_path: Path, engine: Engine
) -> None:
    content = encoded(picture(64, 640), "PNG")
    fitted(content, tmp_path, engine, Size(64, 64))
    with pytest.raises(Unreadable, match="damaged"):
        fitted(content[: len(content) * 8 // 10], tmp_path, engine, Size(64, 64))


def test_damage_inside_is_a_failure(picture: Make, tmp_path: Path, engine: Engine) -> None:
    content = bytearray(encoded(picture(200, 160), "PNG"))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(Unreadable, match="damaged"):
        fitted(bytes(content), tmp_path, engine, Size(64, 64))


@pytest.mark.parametrize("side", [12_000, 60_000])
def test_bombs_are_refused_from_the_header(tmp_path: Path, engine: Engine, side: int) -> None:
    assert side**2 > MAX_PIXELS
    bomb = png(struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), zlib.compress(b"\0" * 100))
    with pytest.raises(Unreadable, match="more than 134,217,728 pixels"):
        fitted(bomb, tmp_path, engine, Size(64, 64))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_animated_pictures_are_refused(
    picture: Make, tmp_path: Path, engine: Engine, kind: str
) -> None:
    frames = [picture(32, 32, seed=seed) for seed in range(3)]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(Unreadable, match="animated"):
        fitted(content, tmp_path, engine, Size(32, 32))


def test_a_cameras_double_jpeg_is_its_first_view(
    picture: Make, tmp_path: Path, engine: Engine
) -> None:
    first, second = picture(32, 32, seed=1), picture(32, 32, seed=2)
    content = encoded(first, "MPO", save_all=True, append_images=[second])
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "MPO"
    found = pixels(fitted(content, tmp_path, engine))
    assert np.abs(found - np.asarray(first)).mean() < np.abs(found - np.asarray(second)).mean() / 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<html>404</html>", "no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "no picture"),
        (b"\x89PNG\r\n\x1a\n", "no picture"),
        (b"\xff\xd8\xff\xe0junk", "damaged"),
    ],
)
def test_what_is_no_picture_says_so(
    tmp_path: Path, engine: Engine, content: bytes, reason: str
) -> None:
    with pytest.raises(Unreadable, match=reason):
        fitted(content, tmp_path, engine, Size(32, 32))


def test_undefined_colours_are_refused(tmp_path: Path, engine: Engine) -> None:
    floats = encoded(Image.new("F", (8, 8), 0.5), "TIFF")
    with pytest.raises(Unreadable, match="mode F"):
        fitted(floats, tmp_path, engine, Size(8, 8))


def test_no_picture_is_judged_by_a_machine_that_cannot_open_it(
    tmp_path: Path, engine: Engine, no_file_to_spare
) -> None:
    content = encoded(Image.new("RGB", (8, 8), "teal"), "PNG")
    one = place(Size(8, 8), Size(8, 8))
    readings = (
        lambda path: read_fitted(path, lambda picture: [one], engine=engine),
        lambda path: read_places(path, lambda picture: [one]),
        lambda path: read_alpha(path, one),
        lambda path: read_mask(path, Size(8, 8), one),
    )
    fitted(content, tmp_path, engine)
    for reading in readings:
        reading(tmp_path / "picture.txt")
        with no_file_to_spare(), pytest.raises(UrushiError, match="ulimit -n") as error:
            reading(tmp_path / "picture.txt")
        assert not isinstance(error.value, Unreadable)


def test_a_disk_that_fails_under_a_picture_is_no_defect_of_it(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "picture.png"
    path.write_bytes(b"on a bad sector")
    monkeypatch.setattr("pipeline.pictures.read.open", lambda *asked: Failing(), raising=False)
    with pytest.raises(UrushiError, match=rf"The disk fails at {path}.*run the same") as error:
        read_fitted(path, lambda picture: [place(picture, Size(8, 8))], engine=engine)
    assert not isinstance(error.value, Unreadable)


def test_files_that_are_not_there(tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(Unreadable, match="gone"):
        read_fitted(
            tmp_path / "nothing.png", lambda picture: [place(picture, Size(8, 8))], engine=engine
        )
    with pytest.raises(Unreadable, match="cannot be read"):
        read_fitted(tmp_path, lambda picture: [place(picture, Size(8, 8))], engine=engine)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "PNG"), ("RGB", "JPEG"), ("RGB", "WEBP"), ("L", "JPEG"), ("RGBA", "PNG")],
)
@pytest.mark.parametrize(
    "bucket",
    [Size(256, 192), Size(192, 256), Size(116, 87), Size(100, 75), Size(640, 512)],
)
def test_scaling_comes_close_to_a_lanczos_in_floats(
    picture: Make, tmp_path: Path, engine: Engine, kind: str, mode: str, bucket: Size
) -> None:
    """At 50 dB and more the error is under 0.8 levels of 255, whichever engine runs."""
    content = encoded(picture(400, 300, mode), kind, **({"quality": 95} if kind == "JPEG" else {}))
    whole = pixels(fitted(content, tmp_path, None))
    one = fitted(content, tmp_path, engine, bucket)
    placed = one.placement
    reference = lanczos(whole, placed.scaled)[
        placed.top : placed.top + bucket.height, placed.left : placed.left + bucket.width
    ]
    assert one.image.size == bucket
    assert psnr(pixels(one), reference) >= 50
    if engine is not None:
        assert psnr(pixels(one), pixels(fitted(content, tmp_path, None, bucket))) >= 50


@pytest.mark.parametrize("bucket", [Size(320, 400), Size(70, 88), Size(50, 59), Size(10, 59)])
def test_white_paper_stays_white(tmp_path: Path, engine: Engine, bucket: Size) -> None:
    """vips's own reduction by more than 4 or so turns 255 into 253 at such ratios as 5/29."""
    white = encoded(Image.new("RGB", (290, 341), "white"), "PNG")
    assert pixels(fitted(white, tmp_path, engine, bucket)).min() == 255


def test_the_middle_is_kept(picture: Make, tmp_path: Path, engine: Engine) -> None:
    image = picture(97, 64)
    one = fitted(encoded(image, "PNG"), tmp_path, engine, Size(64, 64))
    assert (one.placement.left, one.placement.top) == (16, 0)
    assert np.array_equal(pixels(one), np.asarray(image)[:, 16:80])
    one = fitted(
        encoded(image.transpose(Image.Transpose.TRANSPOSE), "PNG"), tmp_path, engine, Size(64, 64)
    )
    assert (one.placement.left, one.placement.top) == (0, 16)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [((1, 1), Size(64, 48)), ((30_000, 40), Size(96, 32)), ((40, 30_000), Size(32, 96))],
)
def test_extreme_shapes(
    picture: Make, tmp_path: Path, engine: Engine, size: tuple[int, int], bucket: Size
) -> None:
    image = Image.new("RGB", size, (10, 200, 30))
    one = fitted(encoded(image, "PNG"), tmp_path, engine, bucket)
    assert one.image.size == bucket
    assert np.abs(pixels(one) - (10, 200, 30)).max() == 0


def test_a_strip_is_never_blown_up_whole(tmp_path: Path) -> None:
    """30,000 x 8 at a height of 128 is 480,000 pixels wide: 245 MB if it were scaled whole."""
    content = encoded(Image.new("RGB", (30_000, 8), "red"), "PNG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    one = fitted(content, tmp_path, None, Size(128, 128))
    assert one.image.size == (128, 128)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_cropping_before_scaling_is_scaling_before_cropping(picture: Make) -> None:
    """At the seam, too: the filter must see what lies beyond the part that is kept."""
    for size, bucket in (
        (Size(400, 120), Size(48, 64)),
        (Size(40, 90), Size(64, 48)),
        (Size(333, 100), Size(64, 64)),
    ):
        image, placed = picture(*size), place(size, bucket)
        whole = lanczos(np.asarray(image), placed.scaled)
        expected = whole[placed.top :, placed.left :][: bucket.height, : bucket.width]
        found = np.asarray(pillow.fit(image, placed))
        for edge in (np.s_[:2], np.s_[-2:], np.s_[:, :2], np.s_[:, -2:]):
            assert psnr(found[edge], expected[edge]) >= 50


def test_vips_runs_where_it_is_installed() -> None:
    assert vips_engine() is not None


def test_without_pyvips_pillow_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pipeline.pictures.vips", raising=False)
    monkeypatch.delattr(pipeline.pictures, "vips", raising=False)
    monkeypatch.setitem(sys.modules, "pyvips", None)
    assert vips_engine() is None
