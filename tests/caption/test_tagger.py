"""Tagging through the real runtime, with a small ONNX model whose answers are known by colour."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from pipeline.artefacts.chain import images_receipt
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.records import ImageRecord
from pipeline.caption import tagging
from pipeline.caption.difference import last_captions
from pipeline.caption.stage import run
from pipeline.caption.tagger import Tagger, model_folder, prepared
from pipeline.errors import RequestError
from pipeline.progress import Silent
from pipeline.recipe.caption import Tagger as Section

SIDE = 16
TAGS = """tag_id,name,category,count
1,red_paper,0,9
2,green_paper,0,9
3,bluebell,4,9
4,general,9,9
"""


def write_model(folder: Path, columns: int = 4) -> Path:
    """Probability of red, green and blue: the share of each colour in the mean of the picture."""
    folder.mkdir(exist_ok=True)
    picked = np.zeros((3, columns), np.float32)
    picked[2, 0] = picked[1, 1] = picked[0, 2] = 1 / 255  # The model sees BGR.
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "picked"], ["output"]),
        ],
        "colours",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", columns])],
        [
            numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
            numpy_helper.from_array(picked, "picked"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(folder / "model.onnx"))
    (folder / "selected_tags.csv").write_text(TAGS)
    return folder


@pytest.fixture
def folder_job(tmp_path: Path) -> Callable[..., Job]:
    """folder_job(mode, {"a.png": (colour, tags or None)}): downloaded, with a tagger."""

    def make(section: str, pictures: dict[str, tuple[str, str | None]]) -> Job:
        from pipeline.download.stage import run as download

        place = tmp_path / "pictures"
        place.mkdir(exist_ok=True)
        for name, (colour, tags) in pictures.items():
            # Each of its own size, so that no two are one file.
            Image.new("RGB", (40 + len(list(place.iterdir())), 40), colour).save(place / name)
            if tags is not None:
                (place / name).with_suffix(".txt").write_text(tags)
        write_model(tmp_path / "model")
        (tmp_path / "set.toml").write_text(
            'name = "set"\n[folder]\npath = "pictures"\n'
            f'[caption]\nquality = []\n[tagger]\nmodel = "model"\n{section}\n'
        )
        job = load_job(tmp_path / "set.toml", tmp_path / "workspace")
        download(job, Silent())
        return job

    return make


def captions(job: Job) -> list[str]:
    run(job, Silent())
    found = last_captions(job.dataset_folder(job.datasets[0][1]))
    assert found is not None
    return sorted(record.caption for record in found)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ('mode = "only missing"', ["hat", "red paper"]),
        ('mode = "append"', ["hat, green paper", "red paper"]),
        ('mode = "replace"', ["green paper", "red paper"]),
        ('mode = "replace"\ngeneral = 0.6', ["", "red paper"]),
    ],
)
def test_modes_and_thresholds(
    folder_job: Callable[..., Job], section: str, expected: list[str]
) -> None:
    pictures = {"a.png": ("#ff0000", None), "b.png": ("#008000", "hat")}
    assert captions(folder_job(section, pictures)) == expected


def test_a_character_needs_more_than_a_colour(folder_job: Callable[..., Job]) -> None:
    job = folder_job("", {"a.png": ("#0000b0", None), "b.png": ("#0000ff", None)})
    assert captions(job) == ["", "bluebell"]  # 0.69 and 1.0, against 0.75.


def test_thresholds_change_without_looking_at_a_picture_again(
    folder_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = folder_job("general = 0.6", {"a.png": ("#008000", None)})
    assert captions(job) == [""]
    monkeypatch.setattr(tagging, "Tagger", None)
    recipe = job.recipe_path
    recipe.write_text(recipe.read_text().replace("0.6", "0.4"))
    assert captions(load_job(recipe, job.workspace.root)) == ["green paper"]


def test_a_stopped_tagging_goes_on_behind_its_last_shard(
    folder_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = folder_job("batch_size = 1", {f"{n}.png": ("#ff0000", None) for n in range(6)})
    dataset = job.datasets[0][1]
    monkeypatch.setattr(tagging, "SHARD", 2)
    looked: list[str] = []

    def stopping(path: Path, side: int) -> np.ndarray:
        if len(looked) == 3:
            looked.append("")
            raise KeyboardInterrupt
        looked.append(path.name)
        return prepared(path, side)

    monkeypatch.setattr(tagging, "prepared", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(job, Silent())
    assert captions(job) == ["red paper"] * 6
    # Two of the first shard once, the one of the second that was cut off twice.
    assert len(looked) - 1 == 7 and len(set(looked) - {""}) == 6
    assert images_receipt(job, dataset) is not None


def test_a_picture_that_cannot_be_read_is_left_as_it_is(tmp_path: Path) -> None:
    from pipeline.artefacts.workspace import DatasetFolder

    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    image = ImageRecord(
        md5="0" * 32, path="cut.png", width=1, height=1, tags={}, score=None, rating="", source="x"
    )
    section = Section(model=str(write_model(tmp_path / "model")))
    said = tagging.seen(section, [image], DatasetFolder(tmp_path), "fp", Silent())
    assert said[image.md5].failure.startswith("unreadable")
    assert tagging.with_tags([image], said, section) == [image]


def test_pictures_are_padded_with_white_and_turned(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (32, 16), (0, 0, 255, 255))
    exif = picture.getexif()
    exif[0x0112] = 6  # Turned by a quarter: 16 wide, 32 high.
    picture.save(tmp_path / "turned.png", exif=exif)
    seen = prepared(tmp_path / "turned.png", SIDE)
    assert seen.shape == (SIDE, SIDE, 3) and seen.dtype == np.float32
    assert seen[8, 8].tolist() == [255, 0, 0] and seen[8, 0].tolist() == [255, 255, 255]
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (prepared(tmp_path / "clear.png", SIDE) == 255).all()


def test_models_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", columns=3)
    with pytest.raises(RequestError, match=r"tells 3 tags and .* names 4"):
        Tagger(folder)
    (folder / "model.onnx").write_bytes(b"not onnx")
    with pytest.raises(RequestError, match="no ONNX model"):
        Tagger(folder)
    (folder / "selected_tags.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RequestError, match="no table of tags"):
        Tagger(folder)
    (folder / "selected_tags.csv").unlink()
    with pytest.raises(RequestError, match=r"it has no selected_tags\.csv"):
        model_folder(str(folder))
