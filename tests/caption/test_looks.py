"""Looking at captions without writing any: differences, numbers, pairs for other programs."""

from collections.abc import Callable
from pathlib import Path

from pipeline.artefacts.job import Job
from pipeline.artefacts.records import CaptionRecord, ImageRecord
from pipeline.caption.difference import Changed, difference, last_captions
from pipeline.caption.export import export_pairs
from pipeline.caption.rules import Written, compile_rules, write_caption
from pipeline.caption.stage import run
from pipeline.caption.statistics import NearSynonyms, statistics
from pipeline.progress import Silent
from pipeline.recipe.caption import Caption

Make = Callable[..., ImageRecord]


def written(image: Make, *captions: str, **section: object) -> list[Written]:
    posts = [image(n, score=None, general=tuple(text.split())) for n, text in enumerate(captions)]
    rules = compile_rules(Caption.model_validate(section), posts, from_booru=True)
    return [write_caption(post, rules) for post in posts]


def record(md5: str, caption: str) -> CaptionRecord:
    return CaptionRecord(md5=md5, caption=caption, score=None)


def test_difference_by_hand() -> None:
    before = [record("a", "halo, smile"), record("b", "gun"), record("c", "hat")]
    after = [record("a", "smile, ring"), record("b", "gun"), record("d", "ring")]
    found = difference(before, after)
    assert found.captions == 3
    assert found.changed == (
        Changed("a", "halo, smile", "smile, ring"),
        Changed("c", "hat", ""),
        Changed("d", "", "ring"),
    )
    assert found.added == {"ring": 2} and found.removed == {"halo": 1, "hat": 1}


def test_the_last_captions_are_those_written_last(
    downloaded: Callable[..., Job], image: Make
) -> None:
    job = downloaded([image(1, general=("halo",), meta=("scan",)), image(2, general=("hat",))])
    folder = job.dataset_folder(job.datasets[0][1])
    assert last_captions(folder) is None
    run(job, Silent())
    found = last_captions(folder)
    assert found is not None and [r.caption for r in found] == [
        "halo, high quality",
        "hat, high quality",
    ]


def test_statistics_by_hand(image: Make) -> None:
    found = statistics(
        written(
            image,
            "long_hair blue_hair halo",
            "long_hair blue_hair",
            "long_hair blue_hair hat",
            "long_hair",
            "",
            drop_tags=["hat"],
        )
    )
    assert found.captions == 5
    assert found.tags == {"long hair": 4, "blue hair": 3, "halo": 1}
    assert found.lengths == (0, 2, 3)
    assert found.dropped == {("hat", "name"): 1}
    assert found.near_synonyms == (NearSynonyms(("blue hair", "long hair"), 3, 1.0),)


def test_tags_that_share_a_word_but_not_their_pictures_are_no_synonyms(image: Make) -> None:
    apart = ["blue_hair"] * 6 + ["red_hair"] * 6 + ["blue_hair red_hair"] * 3
    assert statistics(written(image, *apart)).near_synonyms == ()
    assert statistics(()).lengths == (0, 0, 0)


def test_pairs_for_kohya(image: Make, downloaded: Callable[..., Job], tmp_path: Path) -> None:
    job = downloaded([image(1, general=("halo",))])
    folder = job.dataset_folder(job.datasets[0][1])
    (folder.root / "originals").mkdir(parents=True, exist_ok=True)
    (folder.root / "originals" / "1.png").write_bytes(b"picture")
    out = tmp_path / "pairs"
    one, two = image(1), image(2)
    captions = [record(one.md5, "halo, masterpiece"), record("f" * 32, "no picture")]
    assert export_pairs(folder, [one, two], captions, out, Silent()) == 1
    assert export_pairs(folder, [one, two], captions, out, Silent()) == 1
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        f"{one.md5}.png": "picture",
        f"{one.md5}.txt": "halo, masterpiece\n",
    }
