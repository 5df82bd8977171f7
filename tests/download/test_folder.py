"""Pictures that the user has: found, hashed, tagged from sidecars, and never touched."""

import errno
import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from demo.corpus import Corpus
from pipeline.artefacts.chain import download_fingerprint, images_receipt
from pipeline.artefacts.job import load_job
from pipeline.errors import RequestError, UrushiError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five usable pictures, one of them twice, and much that is none."""
    root = tmp_path / "my pictures"
    (root / "deep" / "er").mkdir(parents=True)
    (root / ".thumbnails").mkdir()
    Image.new("RGB", (40, 30), "red").save(root / "one.JPG", "JPEG")
    Image.new("RGB", (30, 40), "blue").save(root / "deep" / "two.png")
    Image.new("RGB", (20, 20), "green").save(root / "deep" / "er" / "three.webp")
    Image.new("RGB", (10, 12), "white").save(root / "four.bmp")
    Image.new("L", (9, 9)).save(root / "five.gif")
    (root / "zcopy.png").write_bytes((root / "deep" / "two.png").read_bytes())
    (root / "one.txt").write_text("\ufeff1girl, blue_sky , 1girl,\nlong hair,", encoding="utf-8")
    (root / "zcopy.txt").write_text("of the copy")
    (root / "one.caption").write_text("A red wall.\n\n Plain, and red. \n")

    frames = [Image.new("L", (8, 8), shade) for shade in (0, 255)]
    frames[0].save(root / "moving.gif", save_all=True, append_images=frames[1:])
    (root / "cut.png").write_bytes((root / "deep" / "two.png").read_bytes()[:60])
    (root / "empty.jpg").write_bytes(b"")
    (root / "page.webp").write_text("<html>not found</html>")
    Image.new("L", (5, 5)).save(root / "latin.png")
    (root / "latin.txt").write_bytes("b\xe9b\xe9".encode("latin-1"))
    (root / "gone.png").symlink_to(root / "nowhere.png")
    (root / "notes.md").write_text("no picture")
    Image.new("L", (4, 4)).save(root / ".thumbnails" / "small.png")
    Image.new("L", (4, 4)).save(root / "._one.png")
    return root


def snapshot(root: Path) -> dict[str, tuple[float, bytes]]:
    return {
        str(p): (p.stat().st_mtime, p.read_bytes()) for p in sorted(root.rglob("*")) if p.is_file()
    }


def test_usable_pictures_become_records_and_the_rest_rows(downloading, pictures: Path) -> None:
    before = snapshot(pictures)
    downloading.write_folder(pictures)
    assert not downloading.run().already
    images = {record.source: record for record in downloading.images().values()}
    assert set(images) == {"one.JPG", "two.png", "three.webp", "four.bmp", "five.gif"}
    one = images["one.JPG"]
    assert one.path == str(pictures / "one.JPG")
    assert one.md5 == hashlib.md5((pictures / "one.JPG").read_bytes()).hexdigest()
    assert (one.width, one.height, one.score, one.rating) == (40, 30, None, "general")
    assert one.tags == {"general": ("1girl", "blue_sky", "long hair")}
    assert images["two.png"].tags == {"general": ("of the copy",)}  # Equal files are one picture.
    assert images["four.bmp"].tags == {}
    assert one.texts == ("A red wall.", "Plain, and red.")
    assert images["two.png"].texts == ()
    reasons = {Path(f.reason.partition(": ")[0]).name: f.reason for f in downloading.failures()}
    assert set(reasons) == {
        "moving.gif",
        "cut.png",
        "empty.jpg",
        "page.webp",
        "latin.png",
        "gone.png",
    }
    assert "animated" in reasons["moving.gif"]
    assert "latin.txt is not UTF-8" in reasons["latin.png"]
    assert snapshot(pictures) == before
    assert not downloading.folder.originals.exists()


def test_the_receipt_is_what_later_stages_look_for(downloading, pictures: Path) -> None:
    downloading.write_folder(pictures)
    downloading.run()
    job = load_job(downloading.recipe, downloading.workspace)
    dataset = job.datasets[0][1]
    receipt = images_receipt(job, dataset)
    assert receipt.fingerprint == download_fingerprint(dataset)
    assert (receipt.summary["images"], receipt.summary["failures"]) == (5, 6)


def test_a_second_run_does_nothing_until_the_folder_changes(downloading, pictures: Path) -> None:
    downloading.write_folder(pictures)
    downloading.run()
    rows = (downloading.folder.images / "images.jsonl").read_bytes()
    stamp = (downloading.folder.images / "images.jsonl").stat().st_mtime_ns
    assert downloading.run().already
    assert (downloading.folder.images / "images.jsonl").stat().st_mtime_ns == stamp
    (pictures / "five.txt").write_text("dark")
    assert not downloading.run().already
    assert (downloading.folder.images / "images.jsonl").read_bytes() != rows
    Image.new("RGB", (6, 6)).save(pictures / "six.png")
    downloading.run()
    assert len(downloading.images()) == 6


def test_the_exif_turn_is_seen_in_the_size(downloading, tmp_path: Path) -> None:
    root = tmp_path / "turned"
    root.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(root / "a.jpg", exif=exif)
    downloading.write_folder(root)
    downloading.run()
    (record,) = downloading.images().values()
    assert (record.width, record.height) == (30, 40)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds no pictures"),
        (lambda path: path.write_text("x"), "is not a folder"),
        (lambda path: (path.mkdir(), (path / "a.png").write_text("x")), r"None of the 1.*a\.png"),
    ],
)
def test_a_folder_without_pictures_is_a_wrong_request(
    downloading, tmp_path: Path, make, words: str
) -> None:
    make(tmp_path / "pictures")
    downloading.write_folder(tmp_path / "pictures")
    with pytest.raises(RequestError, match=words):
        downloading.run()


def test_a_folder_of_the_corpus_gives_the_same_pictures_as_its_booru(
    downloading, tmp_path: Path, corpus: Corpus
) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    for md5, content in corpus.files.items():
        (root / f"{md5}.jpg").write_bytes(content)  # The name lies; the bytes decide.
    downloading.write_folder(root)
    downloading.run()
    everything = corpus.wanted(("general", "sensitive", "questionable", "explicit"))
    assert everything <= set(downloading.images())


def test_equal_pixels_in_two_files_are_one_picture(downloading, tmp_path: Path, told) -> None:
    root = tmp_path / "p"
    root.mkdir()
    drawn = Image.new("RGB", (240, 160), "white")
    for number, box in enumerate(((10, 20, 90, 140), (60, 50, 200, 90), (150, 100, 230, 150))):
        drawn.paste((90 * number, 40, 120), box)
    drawn.save(root / "a.png")
    drawn.save(root / "b.webp", lossless=True)
    drawn.resize((120, 80)).save(root / "c.png")
    drawn.rotate(180).save(root / "d.png")
    (root / "b.txt").write_text("boxes")
    downloading.write_folder(root)
    downloading.run(told)
    images = {record.source: record for record in downloading.images().values()}
    assert set(images) == {"a.png", "c.png", "d.png"}
    assert images["a.png"].tags == {"general": ("boxes",)}
    assert told.lines == [
        "small:",
        "  3  kept",
        "  1  double: its pixels are those of another file",
        "  groups that look alike: 1, listed in images/alike.jsonl",
    ]
    (row,) = (downloading.folder.images / "alike.jsonl").read_text().splitlines()
    alike = sorted((images["a.png"].md5, images["c.png"].md5))
    assert json.loads(row) == {"md5s": alike}


@pytest.mark.parametrize(
    ("exclude", "kept"),
    [
        ('artists = ["Some One"]', {"b.png"}),
        ('tags = ["sky"]', {"a.png"}),
        ('md5s = ["MD5"]', {"b.png"}),  # And the copy in another file with it.
        ('posts = [1]\nuploaders = ["sky"]\ndomains = ["sky"]', {"a.png", "b.png"}),
        ('files = ["never.txt"]', {"b.png"}),
    ],
)
def test_exclusions_count_for_folders_too(
    downloading, tmp_path: Path, told, exclude: str, kept: set[str]
) -> None:
    root = tmp_path / "p"
    root.mkdir()
    red = Image.new("RGB", (30, 30), "red")
    red.save(root / "a.png")
    red.save(root / "z.webp", lossless=True)
    Image.new("RGB", (30, 30), "blue").save(root / "b.png")
    (root / "a.txt").write_text("cat, some one")
    (root / "z.txt").write_text("cat, some one")
    (root / "b.txt").write_text("cat, Sky")
    (tmp_path / "never.txt").write_text("some_one\n")
    md5 = hashlib.md5((root / "a.png").read_bytes()).hexdigest()
    downloading.write_folder(root, f"[exclude]\n{exclude.replace('MD5', md5)}\n")
    downloading.run(told)
    assert {record.source for record in downloading.images().values()} == kept
    left = [line for line in told.lines if "excluded: " in line]
    assert bool(left) == (len(kept) == 1)


def test_the_pixel_budget_counts_for_folders_too(downloading, tmp_path: Path) -> None:
    root = tmp_path / "p"
    root.mkdir()
    Image.new("RGB", (30, 30), "red").save(root / "a.png")
    Image.new("RGB", (31, 30), "red").save(root / "b.png")
    downloading.write_folder(root, "most_pixels = 900\n")
    downloading.run()
    assert {record.source for record in downloading.images().values()} == {"a.png"}
    (failure,) = downloading.failures()
    assert "31x30 pixels are more than the 900" in failure.reason


def test_no_picture_is_judged_by_a_disk_that_fails(
    downloading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    Image.new("RGB", (40, 30), "red").save(root / "one.png")
    downloading.write_folder(root)

    def failing(*asked: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as failed:
        failed.setattr(hashlib, "file_digest", failing)
        with pytest.raises(UrushiError, match=r"The disk fails at .*one\.png"):
            downloading.run()
    downloading.run()
    assert len(downloading.images()) == 1
