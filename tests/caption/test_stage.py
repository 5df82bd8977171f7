from collections.abc import Callable

import pytest

from pipeline.artefacts.chain import caption_fingerprint, images_receipt
from pipeline.artefacts.job import Job
from pipeline.artefacts.receipts import read_receipt
from pipeline.artefacts.records import CaptionRecord, ImageRecord, read_records
from pipeline.caption.stage import run
from pipeline.errors import RequestError, UrushiError
from pipeline.progress import Silent

Make = Callable[..., ImageRecord]


def captions_of(job: Job) -> list[CaptionRecord]:
    dataset = job.datasets[0][1]
    folder = job.dataset_folder(dataset)
    found = images_receipt(job, dataset)
    fingerprint = caption_fingerprint(dataset, found, job.workspace.identities)
    return read_records(folder.captions(fingerprint) / "captions.jsonl", CaptionRecord)


def test_captions_are_written_once_in_order_of_md5(image: Make, downloaded, heard) -> None:
    images = [
        image(3, score=70, general=("1girl",), artist=("john_doe",)),
        image(1, score=20, general=("halo",)),
        image(2, score=None),
    ]
    job = downloaded(images)
    outcome = run(job, heard)
    assert not outcome.already
    assert outcome.summary == "set: 3 captions"
    assert captions_of(job) == [
        CaptionRecord(md5=images[1].md5, caption="halo, best quality", score=20),
        CaptionRecord(md5=images[2].md5, caption="", score=None),
        CaptionRecord(md5=images[0].md5, caption="1girl, masterpiece", score=70),
    ]
    assert run(job, Silent()).already


def test_a_separator_is_a_tag_of_its_own_and_is_not_said(image: Make, downloaded) -> None:
    recipe = (
        'name = "set"\n[folder]\npath = "."\n'
        '[caption]\nvariation = { separator = "|||" }\n[[caption.rule]]\ndrop = ["halo"]\n'
    )
    job = downloaded([image(1, score=None, general=("mari", "halo ||| sky", "sea"))], recipe)
    run(job, Silent())
    assert [record.caption for record in captions_of(job)] == ["mari, sky, sea"]


def test_the_table_shows_what_each_quality_word_gets(image: Make, downloaded, heard) -> None:
    scores = [60, 61, 18, 6, 5, 4, 3, None]
    run(
        downloaded(
            [image(n, score=s, general=("a", "b"), artist=()) for n, s in enumerate(scores)]
        ),
        heard,
    )
    assert [line.split() for line in heard.lines[1:]] == [
        ["masterpiece", "2", "25%", "score", "60", "and", "up"],
        ["best", "quality", "1", "12%", "score", "18", "and", "up"],
        ["high", "quality", "1", "12%", "score", "6", "and", "up"],
        ["(none)", "4", "50%", "below,", "or", "no", "score"],
    ]


def test_the_receipt_counts_what_was_left_out(image: Make, downloaded, heard) -> None:
    job = downloaded(
        [
            image(1, general=("halo", "by_john_doe"), artist=("john_doe",), meta=("highres",)),
            image(2, score=None),
        ]
    )
    run(job, heard)
    dataset = job.datasets[0][1]
    folder = job.dataset_folder(dataset)
    (receipt,) = folder.root.glob("captions/*/receipt.json")
    found = read_receipt(receipt.parent)
    assert found is not None
    assert found.summary == {
        "captions": 2,
        "quality": {"masterpiece": 0, "best quality": 0, "high quality": 1, "": 1},
        "without_score": 1,
        "young_scores": 0,
        "without_tags": 1,
        "shortened": 0,
        "empty": 1,
        "dropped": {"artist": 1, "category": 1, "names an artist": 1},
        "naming_artists": {"by_john_doe": 1},
    }
    assert "  pictures without any tag: 1" in heard.lines
    assert "  empty captions: 1" in heard.lines


def test_a_changed_rule_writes_anew_and_keeps_what_was(image: Make, downloaded) -> None:
    images = [image(1, score=70, general=("1girl",), artist=())]
    job = downloaded(images)
    run(job, Silent())
    recipe = job.recipe_path.read_text(encoding="utf-8")
    changed = downloaded(images, recipe + '[caption]\nquality = [[50, "great"]]\n')
    assert not run(changed, Silent()).already
    assert [record.caption for record in captions_of(changed)] == ["1girl, great"]
    assert [record.caption for record in captions_of(job)] == ["1girl, masterpiece"]
    assert run(job, Silent()).already


def test_a_folders_pictures_have_no_scores_to_speak_of(
    image: Make, downloaded, heard, tmp_path
) -> None:
    recipe = f'name = "set"\n[folder]\npath = "{tmp_path}"\n'
    job = downloaded([image(1, score=None, rating="", general=("my cat", "on_a_mat"))], recipe)
    run(job, heard)
    assert captions_of(job)[0].caption == "my cat, on a mat"
    assert heard.lines == ["set: 1 captions; no scores, so no quality words"]


def test_leaving_artists_off_the_list_is_answered(image: Make, downloaded, heard) -> None:
    recipe = (
        'name = "set"\n[download]\nsite = "danbooru"\ntags = "a"\n[caption]\ndrop_categories = []\n'
    )
    run(downloaded([image(1, general=("a",), artist=("john_doe",))], recipe), heard)
    assert any("drop_categories" in line for line in heard.lines)


def test_tags_without_categories_are_refused(image: Make, downloaded) -> None:
    with pytest.raises(UrushiError, match="came without categories"):
        run(downloaded([image(1, general=("halo", "john_doe"))]), Silent())


def test_a_rating_that_was_not_asked_for_is_refused(image: Make, downloaded) -> None:
    images = [image(1, artist=(), rating="g"), image(2, artist=(), rating="explicit")]
    with pytest.raises(UrushiError, match="does not list: 1, such as 0000"):
        run(downloaded(images), Silent())


def test_pictures_come_first(image: Make, downloaded) -> None:
    job = downloaded([image(1)])
    (job.dataset_folder(job.datasets[0][1]).images / "receipt.json").unlink()
    with pytest.raises(RequestError, match="urushi download"):
        run(job, Silent())
