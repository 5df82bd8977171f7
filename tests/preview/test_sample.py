import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.artefacts.receipts import read_receipt
from pipeline.artefacts.workspace import BuildFolder
from pipeline.models.load import load_pipeline, load_text
from pipeline.preview import draw
from pipeline.preview.sample import sample, sample_fingerprint
from pipeline.progress import Silent
from pipeline.recipe.base import Base
from pipeline.recipe.preview import Preview
from pipeline.size import Size

SIZE = Size(24, 16)
BASE = Base(checkpoint=Path("base.safetensors"))
PREVIEW = Preview(prompts=("red circle", "two blue square"), seed=7, steps=2, guidance=3)


def test_finished_samples_are_taken_without_importing_torch(tmp_path: Path, make: Any) -> None:
    folder = BuildFolder(tmp_path)
    paths = make.samples(folder, 1, "abc", (1, 2, 3), PREVIEW, SIZE)
    code = f"""
import sys
import pipeline.preview.stage
from pathlib import Path
from pipeline.preview.sample import sample
from pipeline.progress import Silent
from pipeline.size import Size
from pipeline.recipe.base import Base
from pipeline.recipe.base import Base
from pipeline.recipe.preview import Preview
preview = Preview.model_validate_json({PREVIEW.model_dump_json()!r})
nowhere = Path("/there/is/no/such.safetensors")
folder = Path({str(folder.round(1).samples)!r})
paths = sample(
    Base(checkpoint=nowhere), nowhere, preview, Size(24, 16), folder, "abc", Silent()
)
print(*(p.name for p in paths), "torch" in sys.modules, "diffusers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["00.png", "01.png", "False", "False"]
    assert [path.name for path in paths] == ["00.png", "01.png"]


def test_every_setting_that_shows_in_a_picture_changes_the_fingerprint() -> None:
    marks = {
        sample_fingerprint("a", BASE, PREVIEW, SIZE),
        sample_fingerprint("b", BASE, PREVIEW, SIZE),
    }
    marks.add(sample_fingerprint("a", BASE, PREVIEW, Size(16, 24)))
    for change in (
        {"prompts": ("red circle",)},
        {"negative": "blue"},
        {"seed": 8},
        {"seeds": 2},
        {"steps": 3},
        {"guidance": 4},
    ):
        marks.add(sample_fingerprint("a", BASE, PREVIEW.model_copy(update=change), SIZE))
    for read in ({"clip_skip": 2}, {"tokens": 150}):
        marks.add(sample_fingerprint("a", BASE.model_copy(update=read), PREVIEW, SIZE))
    assert len(marks) == 11
    larger = PREVIEW.model_copy(update={"enlarge": 4})
    assert sample_fingerprint("a", BASE, larger, SIZE) in marks


def test_the_same_seed_draws_the_same_bytes(model: Any, tmp_path: Path, said: Any) -> None:
    one = sample(model.base, None, PREVIEW, SIZE, tmp_path / "one", "origin", said)
    two = sample(model.base, None, PREVIEW, SIZE, tmp_path / "two", "origin", said)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert one[0].read_bytes() != one[1].read_bytes()
    with Image.open(one[0]) as picture:
        assert (picture.size, picture.mode) == ((24, 16), "RGB")
    # Both prompts in one batch: two steps, each shown.
    assert said.bars == [("samples", 2, "step")] * 2
    assert said.advanced == 4
    before = one[0].stat().st_mtime_ns
    sample(model.base, None, PREVIEW, SIZE, tmp_path / "one", "origin", said)
    assert one[0].stat().st_mtime_ns == before
    other = PREVIEW.model_copy(update={"seed": 9})
    three = sample(model.base, None, other, SIZE, tmp_path / "two", "origin", said)
    assert three[0].read_bytes() != one[0].read_bytes()
    receipt = read_receipt(tmp_path / "two")
    assert receipt and receipt.inputs["seed"] == 9


def test_fewer_prompts_leave_no_picture_of_the_older_ones(model: Any, tmp_path: Path) -> None:
    sample(model.base, None, PREVIEW, SIZE, tmp_path, "origin", Silent())
    fewer = PREVIEW.model_copy(update={"prompts": ("red circle",)})
    sample(model.base, None, fewer, SIZE, tmp_path, "origin", Silent())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00.png", "receipt.json"]


def test_every_checkpoint_starts_from_the_same_noise(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = model.changed(tmp_path / "round.safetensors", -2.0)
    starts: list[torch.Tensor] = []
    load = load_pipeline

    def watched(*arguments: Any) -> Any:
        pipe = load(*arguments)
        seen: list[torch.Tensor] = []

        def remember(_unet: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            if not seen:
                seen.append(inputs[0].clone())
                starts.extend(seen)

        pipe.unet.register_forward_pre_hook(remember)
        return pipe

    monkeypatch.setattr(draw, "load_pipeline", watched)
    origin = sample(model.base, None, PREVIEW, SIZE, tmp_path / "0", "origin", Silent())
    after = sample(model.base, checkpoint, PREVIEW, SIZE, tmp_path / "1", "round", Silent())
    assert torch.equal(*starts)
    # Twice over, without and with the prompt; both prompts from the seed.
    assert starts[0].shape == (4, 4, 8, 12)
    generator = torch.Generator("cpu").manual_seed(7)
    expected = torch.randn((1, 4, 8, 12), generator=generator)
    assert torch.equal(starts[0][1:2], expected)
    assert torch.equal(starts[0][3:4], expected)
    assert origin[0].read_bytes() != after[0].read_bytes()


def test_two_seeds_are_two_pictures_of_one_prompt(model: Any, tmp_path: Path) -> None:
    twice = PREVIEW.model_copy(update={"prompts": ("red circle",), "seeds": 2})
    one, two = sample(model.base, None, twice, SIZE, tmp_path / "2", "origin", Silent())
    assert one.read_bytes() != two.read_bytes()
    again = twice.model_copy(update={"seed": 8, "seeds": 1})
    (alone,) = sample(model.base, None, again, SIZE, tmp_path / "1", "origin", Silent())
    assert alone.read_bytes() == two.read_bytes()


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> Base:
    root = tmp_path_factory.mktemp("sdxl")
    tiny.make_sdxl_pipeline(root / "tokenizer").save_pretrained(root / "pipeline")
    return Base(checkpoint=root / "pipeline")


def test_an_sdxl_is_drawn_from_the_same_noise_and_told_its_size(
    sdxl: Base, tmp_path: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[torch.Tensor] = []
    starts: list[torch.Tensor] = []
    load = load_pipeline

    def watched(*arguments: Any) -> Any:
        pipe = load(*arguments)

        def remember(_unet: Any, inputs: Any, named: Any) -> None:
            told.append(named["added_cond_kwargs"]["time_ids"])
            starts.append(inputs[0])

        pipe.unet.register_forward_pre_hook(remember, with_kwargs=True)
        return pipe

    monkeypatch.setattr(draw, "load_pipeline", watched)
    one = sample(sdxl, None, PREVIEW, SIZE, tmp_path / "1", "origin", said)
    two = sample(sdxl, None, PREVIEW, SIZE, tmp_path / "2", "origin", said)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    # Height and width, the crop's top and left, and both again: once without and with each prompt.
    assert told[0].tolist() == [[16, 24, 0, 0, 16, 24]] * 4
    expected = torch.randn((1, 4, 8, 12), generator=torch.Generator("cpu").manual_seed(7))
    assert torch.equal(starts[0][1:2], expected)
    with Image.open(one[0]) as picture:
        assert (picture.size, picture.mode) == ((24, 16), "RGB")
        assert len(picture.getcolors(1000) or ()) > 100


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_half_precision_draws_nearly_the_same(
    family: str, model: Any, sdxl: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = model.base if family == "sd15" else sdxl
    whole = draw.draw(base, None, PREVIEW, SIZE, Silent(), what="x")[0]
    monkeypatch.setattr(draw, "ON_CPU", ("cpu", torch.float16))
    half = draw.draw(base, None, PREVIEW, SIZE, Silent(), what="x")[0]
    apart = np.abs(np.asarray(whole).astype(int) - np.asarray(half).astype(int))
    assert 0 < apart.max() < 16
    assert apart.mean() < 1


def test_a_prompt_is_drawn_alike_in_any_batch(model: Any) -> None:
    def pixels(prompts: tuple[str, ...]) -> np.ndarray[Any, Any]:
        preview = PREVIEW.model_copy(update={"prompts": prompts})
        picture = draw.draw(model.base, None, preview, SIZE, Silent(), what="x")[0]
        return np.asarray(picture).astype(int)

    alone = pixels(("red circle",))
    among = pixels(("red circle", *(f"{n} green square" for n in range(9))))
    assert np.abs(alone - among).max() <= 1


@pytest.mark.parametrize("read", [{}, {"clip_skip": 2}, {"tokens": 225}], ids=str)
def test_prompts_are_read_as_captions_are_in_training(
    model: Any, monkeypatch: pytest.MonkeyPatch, read: dict[str, int]
) -> None:
    base = model.base.model_copy(update=read)
    told: list[torch.Tensor] = []
    load = load_pipeline

    def watched(*arguments: Any) -> Any:
        pipe = load(*arguments)

        def remember(_unet: Any, _inputs: Any, named: Any) -> None:
            told.append(named["encoder_hidden_states"])

        pipe.unet.register_forward_pre_hook(remember, with_kwargs=True)
        return pipe

    monkeypatch.setattr(draw, "load_pipeline", watched)
    long = " ".join(["red circle"] * 60)
    preview = PREVIEW.model_copy(update={"prompts": (long,), "negative": "blue"})
    draw.draw(base, None, preview, SIZE, Silent(), what="x")
    assert torch.equal(told[0], load_text(base).encode(["blue", long]).hidden)
    assert told[0].shape[1] == 77 * base.tokens // 75


def test_batches_stay_within_pictures_and_pixels() -> None:
    assert [list(run) for run in draw.batches(10, Size(64, 64))] == [list(range(8)), [8, 9]]
    # 8 x 512 x 512 pixels hold three pictures of 768 x 768, and not one of 1536 x 1536.
    assert [len(run) for run in draw.batches(7, Size(768, 768))] == [3, 3, 1]
    assert [len(run) for run in draw.batches(2, Size(1536, 1536))] == [1, 1]
    assert draw.batches(0, Size(64, 64)) == []


def test_broken_weights_come_out_black_and_are_told(model: Any, tmp_path: Path, said: Any) -> None:
    broken = model.changed(tmp_path / "broken.safetensors", float("nan"))
    paths = sample(model.base, broken, PREVIEW, SIZE, tmp_path / "x", "nan", said)
    with Image.open(paths[0]) as picture:
        assert picture.getextrema() == ((0, 0),) * 3
    assert len(said.lines) == 1
    assert "2 of 2 pictures have values that are not numbers" in said.lines[0]
