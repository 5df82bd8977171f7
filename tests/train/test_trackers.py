"""Where curves go besides TensorBoard: real runs of W&B's, offline, and what is told without it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.errors import RequestError
from pipeline.progress import Silent
from pipeline.recipe import BuildRecipe
from pipeline.recipe.preview import Preview
from pipeline.train.plan import RoundTraining
from pipeline.train.round import train_round
from pipeline.train.trackers import begun, require_trackers

TrainMaker = Callable[..., tuple[BuildRecipe, RoundTraining]]
PREVIEW = Preview(prompts=("red circle", "two blue square"), seed=3, steps=3, width=16, height=24)
KEY = "0123456789abcdef" * 2 + "deadbeef"


def test_a_tracker_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_trackers(("tensorboard",))
    # As W&B leaves a folder where it ran; it is no package.
    (tmp_path / "no_such_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RequestError, match='names "no_such_tracker", which is not installed'):
        require_trackers(("tensorboard", "no_such_tracker"))


def test_a_missing_wandb_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.train.trackers.find_spec", lambda _: None)
    with pytest.raises(RequestError, match=re.escape("pip install 'urushi[wandb]'")) as caught:
        require_trackers(("wandb",))
    assert caught.value.exit_code == 2


@pytest.fixture
def wandb() -> Iterator[Any]:
    """W&B's package, which reads the environment once for each of its sessions."""
    package = pytest.importorskip("wandb")
    package.teardown()
    yield package
    package.teardown()


def test_curves_and_samples_reach_wandb_and_its_key_goes_nowhere(
    plan: TrainMaker, wandb: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    asked = {"log_every": 1, "sample_every": 2, "trackers": ("tensorboard", "wandb")}
    recipe, training = plan("seen", steps=4, train=asked)
    train_round(recipe.model_copy(update={"preview": PREVIEW}), training, Silent())
    assert wandb.run is None  # It was closed.
    (run,) = (training.folder / "wandb").glob("offline-run-*")
    assert run.name.endswith(f"-seen-{training.fingerprint[:8]}")
    (kept,) = run.glob("*.wandb")
    said = kept.read_bytes()
    for curve in (b"loss", b"loss/mean", b"learning_rate", b"pictures_per_second", b"peak_gib"):
        assert said.count(curve) >= 4
    assert b"adamw" in said  # The settings.
    pictures = [Image.open(path) for path in (run / "files/media/images").glob("samples_*.png")]
    drawn = [Image.open(path) for path in (training.folder / "samples").iterdir()]
    assert len(pictures) == 4
    assert {p.tobytes() for p in pictures} == {p.tobytes() for p in drawn}
    for path in training.folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path


@pytest.mark.usefixtures("wandb")
def test_wandb_without_a_key_says_what_to_do(
    plan: TrainMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    training = plan("none")[1]
    with pytest.raises(RequestError, match=r"No API key configured.*WANDB_MODE=offline"):
        begun(("wandb",), tmp_path, 0, training.fingerprint, training.settings)
