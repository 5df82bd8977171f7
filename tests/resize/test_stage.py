import errno
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

import pipeline
from pipeline.artefacts.chain import images_receipt, resize_fingerprint
from pipeline.artefacts.executor import Processes
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.receipts import Receipt, read_receipt
from pipeline.artefacts.records import Failure, ImageRecord, ResizedRecord, read_records
from pipeline.caption import stage as caption_stage
from pipeline.errors import DiskFullError, RequestError, UrushiError
from pipeline.progress import Silent
from pipeline.resize import shards, stage
from pipeline.size import Size

Make = Callable[..., Image.Image]


def jpeg(image: Image.Image) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, "JPEG", quality=90)
        return buffer.getvalue()


def resized_folder(job: Job) -> Path:
    dataset = job.datasets[0][1]
    folder = job.dataset_folder(dataset)
    return folder.resized(resize_fingerprint(job.recipe.resize, images_receipt(job, dataset)))


def rows_of(job: Job) -> list[ResizedRecord]:
    return read_records(resized_folder(job) / "index.jsonl", ResizedRecord)


def receipt_of(folder: Path) -> Receipt:
    receipt = read_receipt(folder)
    assert receipt is not None
    return receipt


def contents(job: Job) -> dict[str, bytes]:
    """Everything that resizing made but for receipts, which say when."""
    root = resized_folder(job)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "receipt.json"
    }


def times(job: Job) -> dict[str, int]:
    root = resized_folder(job)
    return {
        str(path.relative_to(root)): path.stat().st_mtime_ns
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def many(picture: Make, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """60 JPEGs, every one another picture; shards of 24 make three of them."""
    monkeypatch.setattr(stage, "SHARD", 24)
    big = picture(320, 260)
    return [jpeg(big.crop((n * 2, n, n * 2 + 150 + n % 40, n + 140))) for n in range(60)]


def test_pictures_come_to_lie_in_their_buckets(picture: Make, downloaded, heard) -> None:
    originals = [
        jpeg(picture(200, 100, seed=1)),
        jpeg(picture(100, 100, seed=2)),
        jpeg(picture(30, 30, seed=3)),
    ]
    job = downloaded(originals)
    outcome = stage.run(job, heard)
    assert not outcome.already
    assert outcome.summary == "set: 3 pictures in 2 buckets"
    rows = rows_of(job)
    assert [row.md5 for row in rows] == sorted(row.md5 for row in rows)
    found = {
        (row.original_width, row.original_height): (
            row.width,
            row.height,
            row.crop_left,
            row.crop_top,
        )
        for row in rows
    }
    assert found == {  # 80x48 is 5:3, 128x32 is 4:1, and 2:1 is nearer to 5:3.
        (200, 100): (80, 48, 8, 0),
        (100, 100): (64, 64, 0, 0),
        (30, 30): (64, 64, 0, 0),
    }
    for row in rows:
        assert row.file == f"shards/00000/{row.md5}.webp"
        with Image.open(resized_folder(job) / row.file) as image:
            assert (image.format, image.mode, image.size) == (
                "WEBP",
                "RGB",
                (row.width, row.height),
            )
    receipt = receipt_of(resized_folder(job))
    assert receipt.summary == {
        "pictures": 3,
        "kept": True,
        "failures": 0,
        "upscaled": 1,
        "buckets": {"64x64": 2, "80x48": 1},
        "engines": {"pillow": 1, "vips": 2},
        "libvips": receipt.summary["libvips"],
    }
    assert len(receipt.summary["libvips"]) == 1
    assert heard.lines == [
        "set: 3 pictures by bucket: 64x64 2, 80x48 1",
        "  smaller than their bucket, and enlarged: 1",
    ]
    before = times(job)
    assert stage.run(job, Silent()).already
    assert times(job) == before


def test_png_is_stored_on_request(picture: Make, downloaded) -> None:
    webp = downloaded([jpeg(picture(200, 100))])
    png = downloaded(
        [jpeg(picture(200, 100))], build=(webp.recipe_path.read_text() + 'format = "png"\n')
    )
    for job in (webp, png):
        stage.run(job, Silent())
    (one,), (other,) = rows_of(webp), rows_of(png)
    with (
        Image.open(resized_folder(webp) / one.file) as a,
        Image.open(resized_folder(png) / other.file) as b,
    ):
        assert (a.format, b.format) == ("WEBP", "PNG")
        assert a.tobytes() == b.tobytes()


def test_several_resolutions_from_one_decoding(picture: Make, downloaded) -> None:
    job = downloaded([jpeg(picture(200, 100))])
    text = job.recipe_path.read_text() + "more_resolutions = [96]\n"
    both = downloaded([jpeg(picture(200, 100))], build=text)
    alone = downloaded([jpeg(picture(200, 100))], build=text.replace("64\nstep", "96\nstep")
                       .replace("more_resolutions = [96]", ""))  # fmt: skip
    for one in (job, both, alone):
        stage.run(one, Silent())
    small, large = rows_of(both)
    assert small == rows_of(job)[0]
    (expected,) = rows_of(alone)
    assert large.file == f"shards/00000/{large.md5}-2.webp"
    assert large.model_copy(update={"file": expected.file}) == expected
    assert (resized_folder(both) / large.file).read_bytes() == (
        resized_folder(alone) / expected.file
    ).read_bytes()
    receipt = receipt_of(resized_folder(both))
    assert receipt.summary["pictures"] == 1 and sum(receipt.summary["buckets"].values()) == 2


def test_jpeg_is_near_and_small(picture: Make, downloaded) -> None:
    webp = downloaded([jpeg(picture(200, 100))])
    lossy = downloaded(
        [jpeg(picture(200, 100))], build=webp.recipe_path.read_text() + 'format = "jpeg"\n'
    )
    for job in (webp, lossy):
        stage.run(job, Silent())
    (one,), (other,) = rows_of(webp), rows_of(lossy)
    with (
        Image.open(resized_folder(webp) / one.file) as a,
        Image.open(resized_folder(lossy) / other.file) as b,
    ):
        assert (b.format, b.layers, b.size) == ("JPEG", 3, a.size)
        error = np.asarray(a).astype(float) - np.asarray(b.convert("RGB"))
        assert 0 < np.sqrt((error**2).mean()) < 4


def test_a_picture_too_small_to_stay_as_it_is_fails(picture: Make, downloaded) -> None:
    job = downloaded([jpeg(picture(200, 100)), jpeg(picture(50, 40)), jpeg(picture(31, 300))])
    still = downloaded(
        [jpeg(picture(200, 100)), jpeg(picture(50, 40)), jpeg(picture(31, 300))],
        build=job.recipe_path.read_text() + "upscale = false\n",
    )
    stage.run(still, Silent())
    assert sorted((row.width, row.height) for row in rows_of(still)) == [(48, 32), (80, 48)]
    (failure,) = read_records(resized_folder(still) / "failures.jsonl", Failure)
    assert failure.reason == "31x300: [resize].upscale is off and a side is under 32"


def test_a_pictures_failure_is_a_row_with_a_reason(picture: Make, downloaded, heard) -> None:
    good = jpeg(picture(100, 100))
    job = downloaded([good, good[:2000], b"<html>", good + b"x"])
    gone = max(  # The last written, which is the one to vanish between listing and reading.
        read_records(job.dataset_folder(job.datasets[0][1]).images / "images.jsonl", ImageRecord),
        key=lambda record: record.source,
    )
    (job.dataset_folder(job.datasets[0][1]).root / gone.path).unlink()
    stage.run(job, heard)
    assert len(rows_of(job)) == 1
    failures = read_records(resized_folder(job) / "failures.jsonl", Failure)
    assert sorted(failure.reason.split(":")[0].split(" (")[0] for failure in failures) == [
        "damaged",
        "no picture of a known kind",
        "the file is gone",
    ]
    assert any(line.startswith("  cannot be used: 3 (") for line in heard.lines)
    assert stage.run(job, Silent()).already


def test_no_usable_picture_is_an_error(downloaded) -> None:
    job = downloaded([b"", b"<html>"])
    with pytest.raises(UrushiError, match="Not one of the 2 pictures of set can be used"):
        stage.run(job, Silent())
    with pytest.raises(UrushiError, match="Not one of"):
        stage.run(job, Silent())


def test_pictures_that_all_failed_are_tried_again(picture: Make, downloaded) -> None:
    """As when their disk was not there."""
    job = downloaded([jpeg(picture(100, 100)), jpeg(picture(90, 110))])
    originals = job.dataset_folder(job.datasets[0][1]).root / "originals"
    originals.rename(originals.with_name("away"))
    with pytest.raises(UrushiError, match="the file is gone"):
        stage.run(job, Silent())
    originals.with_name("away").rename(originals)
    stage.run(job, Silent())
    assert len(rows_of(job)) == 2


def test_a_picture_that_the_machine_cannot_read_is_read_by_the_next_run(
    picture: Make, downloaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = downloaded([jpeg(picture(100, 100)), jpeg(picture(90, 110))])
    opened = []

    def failing(path: Path, mode: str) -> io.BufferedReader:
        opened.append(path)
        if len(opened) == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return open(path, mode)

    monkeypatch.setattr("pipeline.pictures.read.open", failing, raising=False)
    with pytest.raises(UrushiError, match="ulimit -n"):
        stage.run(job, Silent())
    stage.run(job, Silent())
    assert len(rows_of(job)) == 2
    assert read_records(resized_folder(job) / "failures.jsonl", Failure) == []


def test_no_picture_at_all_is_an_error(downloaded) -> None:
    with pytest.raises(UrushiError, match="set has no pictures"):
        stage.run(downloaded([]), Silent())


def test_pictures_come_first(picture: Make, downloaded) -> None:
    job = downloaded([jpeg(picture(100, 100))])
    (job.dataset_folder(job.datasets[0][1]).images / "receipt.json").unlink()
    with pytest.raises(RequestError, match="urushi download"):
        stage.run(job, Silent())


def test_a_dataset_recipe_alone_has_no_ladder(downloaded) -> None:
    job = downloaded([])
    alone = load_job(job.datasets[0][0], job.workspace.root)
    with pytest.raises(RequestError, match="needs a build recipe"):
        stage.run(alone, Silent())


def test_pictures_may_stay_where_the_user_has_them(
    picture: Make, downloaded, tmp_path: Path
) -> None:
    mine = tmp_path / "mine \u00e9 [a=b].jpg"  # vips would take the brackets for options.
    mine.write_bytes(jpeg(picture(200, 100)))
    job = downloaded([mine])
    stage.run(job, Silent())
    assert (rows_of(job)[0].original_width, rows_of(job)[0].original_height) == (200, 100)


def test_a_lost_shard_is_made_again_alone(many: list[bytes], downloaded) -> None:
    job = downloaded(many)
    stage.run(job, Silent())
    root = resized_folder(job)
    assert sorted(path.name for path in (root / "shards").glob("[0-9]*")) == [
        "00000",
        "00001",
        "00002",
    ]
    before, made = times(job), contents(job)
    (root / "shards/00001/receipt.json").unlink()
    (root / "shards/00001/stray.webp").write_bytes(b"of a run that was killed")
    assert not stage.run(job, Silent()).already
    touched = {name for name, when in times(job).items() if before.get(name) != when}
    assert {name.rsplit("/", 1)[0] for name in touched if "/" in name} == {"shards/00001"}
    assert len([name for name in touched if name.endswith(".webp")]) == 24
    assert contents(job) == made


def test_a_lost_picture_is_missed(many: list[bytes], downloaded) -> None:
    job = downloaded(many[:3])
    stage.run(job, Silent())
    made = contents(job)
    (resized_folder(job) / rows_of(job)[1].file).unlink()
    assert not stage.run(job, Silent()).already
    assert contents(job) == made


def test_processes_and_none_make_the_same_bytes(
    many: list[bytes], downloaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    class Counted(Processes):
        def run(self, work, tasks, advance):
            started.append(self.processes)
            super().run(work, tasks, advance)

    monkeypatch.setattr(stage, "Processes", Counted)
    monkeypatch.setattr(stage, "cores", lambda: 2)
    alone = downloaded(many, folder=tmp_path / "alone")
    spread = downloaded(many, sized=False, folder=tmp_path / "spread")
    stage.run(alone, Silent())
    stage.run(spread, Silent())
    assert started == [1, 2]
    assert contents(spread) == contents(alone)
    assert sum(name.endswith(".webp") for name in contents(alone)) == 60


def test_an_error_in_a_process_stops_the_stage_and_keeps_its_kind(
    many: list[bytes], downloaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = downloaded(many, sized=False)
    monkeypatch.setattr(stage, "cores", lambda: 2)
    blocked = resized_folder(job) / "shards"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the folder of shards should be")
    with pytest.raises(RequestError, match="cannot be written"):
        stage.run(job, Silent())


def test_a_full_disk_is_no_pictures_fault(
    many: list[bytes], downloaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = downloaded(many[:3])

    def full(path: Path, content: bytes) -> None:
        raise DiskFullError(f"No room left on the disk while writing {path}.")

    with monkeypatch.context() as patched:
        patched.setattr(shards, "write_bytes", full)
        with pytest.raises(DiskFullError):
            stage.run(job, Silent())
    assert not list(resized_folder(job).rglob("receipt.json"))
    stage.run(job, Silent())
    assert len(rows_of(job)) == 3


def test_a_caption_rule_makes_captions_anew_and_lets_pictures_stand(
    picture: Make, downloaded
) -> None:
    job = downloaded([jpeg(picture(100, 100))])
    for one in (caption_stage, stage):
        assert not one.run(job, Silent()).already
    before = times(job)
    path = job.datasets[0][0]
    path.write_text(path.read_text() + '[caption]\ndrop_tags = ["1girl"]\n')
    changed = load_job(job.recipe_path, job.workspace.root)
    assert not caption_stage.run(changed, Silent()).already
    assert stage.run(changed, Silent()).already
    assert times(changed) == before


def test_another_resolution_makes_pictures_anew(picture: Make, downloaded) -> None:
    job = downloaded([jpeg(picture(100, 100))])
    stage.run(job, Silent())
    larger = downloaded(
        [jpeg(picture(100, 100))], build=job.recipe_path.read_text().replace("= 64", "= 96")
    )
    assert not stage.run(larger, Silent()).already
    assert Size(rows_of(larger)[0].width, rows_of(larger)[0].height) == Size(96, 96)
    assert stage.run(job, Silent()).already


def test_the_stage_itself_is_light_to_import() -> None:
    heavy = "{'numpy', 'PIL', 'pyvips', 'torch'}"
    code = f"import sys, pipeline.resize.stage; print({heavy} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(Path(pipeline.__file__).parents[1])}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (answer.returncode, answer.stdout.strip()) == (0, b"set()")


RUN = """
import sys
from pathlib import Path
from pipeline.artefacts.job import load_job
from pipeline.progress import Silent
from pipeline.resize import stage

if __name__ == "__main__":
    stage.cores = lambda: 2
    stage.SHARD = 24
    stage.run(load_job(Path(sys.argv[1]), Path(sys.argv[2])), Silent())
"""


def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(
    many: list[bytes], downloaded, tmp_path: Path
) -> None:
    undisturbed = downloaded(many, folder=tmp_path / "undisturbed")
    stage.run(undisturbed, Silent())
    job = downloaded(many, sized=False, folder=tmp_path / "killed")
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": str(Path(pipeline.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, script, job.recipe_path, job.workspace.root], env=environment
    )
    children: list[psutil.Process] = []
    try:
        _wait(lambda: len(list(resized_folder(job).rglob("*.webp"))) > 5)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        assert len(children) >= 2  # The workers, and what multiprocessing keeps beside them.
        assert not (resized_folder(job) / "receipt.json").exists()
        _wait(lambda: not any(_lives(child) for child in children))
    finally:
        for leftover in (process, *filter(_lives, children)):
            leftover.kill()
        process.wait()
    stage.run(job, Silent())
    assert contents(job) == contents(undisturbed)
    assert not list(job.workspace.root.rglob("*.part"))


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait(until: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)
