import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from pipeline.artefacts.ledger import Candidate, Ledger, Refitted, RoundRow
from pipeline.artefacts.receipts import write_receipt
from pipeline.artefacts.workspace import BuildFolder
from pipeline.preview.sample import picture_paths, sample_fingerprint, settings
from pipeline.recipe.base import Base
from pipeline.recipe.preview import Preview
from pipeline.recipe.shots import shots
from pipeline.size import Size

Colour = tuple[int, int, int]
SMALL = Size(16, 8)


class TinyModel(NamedTuple):
    """A Stable Diffusion of random weights in one file, and rounds' files that differ from it."""

    base: Base
    tensors: dict[str, Any]
    write: Callable[[Path, dict[str, Any]], Path]

    def changed(self, path: Path, factor: float) -> Path:
        """A checkpoint whose UNet ends in `factor` times the origin's last layer."""
        last = "model.diffusion_model.out.2.weight"
        return self.write(path, {**self.tensors, last: self.tensors[last] * factor})


@pytest.fixture(scope="session")
def tiny() -> Any:
    """tests/models/tiny.py, which no test can import by name."""
    source = Path(__file__).parents[1] / "models" / "tiny.py"
    spec = importlib.util.spec_from_file_location("tiny_model", source)
    assert spec and spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return build


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> TinyModel:
    root = tmp_path_factory.mktemp("model")
    pipeline = tiny.make_pipeline(root / "tokenizer")
    pipeline.save_pretrained(root / "pipeline")
    tensors = tiny.single_file_tensors(pipeline)
    file = tiny.write_single_file(root / "base.safetensors", tensors)
    return TinyModel(
        Base(checkpoint=file, config=root / "pipeline"), tensors, tiny.write_single_file
    )


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Networks this small lose more to waiting threads than they gain."""
    if "tiny" not in request.fixturenames:
        yield
        return
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Said:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bars: list[tuple[str, int, str]] = []
        self.advanced = 0

    def bar(self, what: str, total: int, unit: str, done: int = 0) -> "Said":
        self.bars.append((what, total, unit))
        return self

    def say(self, text: str) -> None:
        self.lines.append(text)

    def advance(self, count: int = 1) -> None:
        self.advanced += count

    def note(self, text: str) -> None: ...

    def __enter__(self) -> "Said":
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def said() -> Said:
    return Said()


def make_row(number: int, **changes: Any) -> RoundRow:
    """A round's row whose every number is another one, so that a page can be searched for each."""
    before, after = 1.5 / number, 1.41 / (number + 1)
    row = {
        "round": number,
        "dataset": "pictures",
        "lora": f"rounds/{number:02d}/lora.safetensors",
        "sha256": f"{number:02x}" * 32,
        "rank": 8,
        "alpha": 4.0,
        "learning_rate": 3.1e-3 / 2**number,
        "steps": 100 + number,
        "strength": round(0.8 + number / 100, 2),
        "heldout_before": before,
        "heldout_after": after,
        "improvement_low": (before - after) * 0.9,
        "improvement_high": (before - after) * 1.1,
        "decision": "accepted",
        "candidates": tuple(
            Candidate(strength=s, loss=before - s * (before - after)) for s in (0, 0.5, 1)
        ),
        "attempts": 1,
        "train_loss": 0.9 / number,
        "wanted": round(0.8 + number / 100, 2),
        "final_strength": round(0.8 + number / 100, 2),
        "buckets": (),
        "anchor_before": None,
        "anchor_after": None,
        "drift": 0.013 * number,
        "cosines": {1: 0.1} if number > 1 else {},
        "effective_rank": 4.0 * number,
        "intruders": number,
        "peak_memory": {"cpu": 1_000_000_000},
        "versions": {"torch": "2"},
        "checkpoint_sha256": f"{128 + number:02x}" * 32,
        "cast_loss": 0.011 * number,
        "seconds": 61.0 + number,
        "phases": {"train": 50.0, "merge": 2.0 + number},
    }
    return RoundRow.model_validate({**row, **changes})


def make_ledger(*rows: RoundRow, **changes: Any) -> Ledger:
    ledger = {
        "build": "coat",
        "recipe": "coat.toml",
        "seed": 1,
        "origin": "/models/base.safetensors",
        "origin_blake3": "ab" * 32,
        "prediction_type": "epsilon",
        "status": "finished",
        "stopped": None,
        "trials": (),
        "refit": None,
        "baseline": None,
        "heldout_pictures": 20,
        "heldout_origin": 1.5 if rows else None,
        "gain": None,
        "rounds": rows,
        "final": None,
        "final_sha256": None,
        "final_lora": None,
        "seconds": {"download": 12.0, "resize": 3.0},
    }
    return Ledger.model_validate({**ledger, **changes})


def put_samples(
    folder: BuildFolder,
    number: int,
    identity: str,
    colour: Colour,
    preview: Preview,
    size: Size = SMALL,
) -> list[Path]:
    """Samples of round `number` in one colour, with the receipt that drawing them would leave."""
    samples = folder.round(number).samples
    samples.mkdir(parents=True, exist_ok=True)
    paths = picture_paths(samples, len(shots(preview)))
    for path in paths:
        Image.new("RGB", size, colour).save(path)
    write_receipt(
        samples,
        "preview",
        sample_fingerprint(identity, Base(checkpoint=Path("base")), preview, size),
        inputs={"identity": identity, **settings(preview, size)},
        outputs=paths,
    )
    return paths


def make_refit(**changes: Any) -> Refitted:
    facts = {
        "rounds": (1, 2),
        "merged_at": (0.81, 0.82),
        "fitted": (0.7, 0.6),
        "strengths": (0.7, 0.6),
        "kept": True,
        "passes": 4,
        "chosen_before": 0.5,
        "chosen_after": 0.4,
        "before": 0.47,
        "after": 0.45,
        "low": 0.01,
        "high": 0.03,
        "buckets": (),
        "origin": {"before": 1.5, "after": 0.45, "low": 0.9, "high": 1.2},
        "anchor_before": None,
        "anchor_after": None,
    }
    return Refitted.model_validate(facts | changes)


class Make(NamedTuple):
    """The makers above, for tests, which cannot import this file."""

    row: Callable[..., RoundRow] = make_row
    ledger: Callable[..., Ledger] = make_ledger
    samples: Callable[..., list[Path]] = put_samples
    refit: Callable[..., Refitted] = make_refit


@pytest.fixture
def make() -> Make:
    return Make()
