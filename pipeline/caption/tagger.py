"""Pictures into tags by a WD tagger: an ONNX model and its table of tags.

The form is SmilingWolf's: model.onnx takes (B, side, side, 3) float32, BGR, 0 to 255, and gives
(B, tags) probabilities; selected_tags.csv names the tags in that order with their category (0
general, 4 character, 9 rating). onnxruntime is an extra: pip install 'urushi[tagger]'.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.artefacts.chain import TAGGER_FILES
from pipeline.errors import RequestError

if TYPE_CHECKING:
    import onnxruntime

MODEL_FILE, TAGS_FILE = TAGGER_FILES
CATEGORIES = {"0": "general", "4": "character", "9": "rating"}
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
"""The first that onnxruntime has is used."""

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class Guess:
    """One tag of a picture, as the model sees it."""

    category: str
    tag: str
    probability: float


def model_folder(model: str, beside: Path | None = None) -> Path:
    """The folder of a model: a path, or an id such as "SmilingWolf/wd-eva02-large-tagger-v3", which
    is fetched from Hugging Face's hub once.

    Raises:
        RequestError: there is neither, or the folder lacks a file.
    """
    folder = Path(model).expanduser()
    if beside is not None and not folder.is_absolute() and (beside / folder).is_dir():
        folder = beside / folder
    if not folder.is_dir():
        folder = _from_hub(model)
    for name in (MODEL_FILE, TAGS_FILE):
        if not (folder / name).is_file():
            raise RequestError(
                f"{folder} is no WD tagger: it has no {name}. "
                f"[tagger].model names a folder with {MODEL_FILE} and {TAGS_FILE}, or a hub id."
            )
    return folder


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=[MODEL_FILE, TAGS_FILE]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise RequestError(
            f"There is no folder {model} ([tagger].model), and no such model could be fetched from "
            f"the hub ({type(error).__name__}). Name a folder, or an id such as "
            "SmilingWolf/wd-eva02-large-tagger-v3."
        ) from error


def read_tags(path: Path) -> tuple[tuple[str, str], ...]:
    """(category, tag) in the order of the model's outputs.

    Raises:
        RequestError: it is not such a table.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"name", "category"} <= rows[0].keys():
        raise RequestError(f"{path} is no table of tags: it needs the columns name and category.")
    return tuple((CATEGORIES.get(row["category"], "meta"), row["name"]) for row in rows)


class Tagger:
    """A loaded model."""

    def __init__(self, folder: Path) -> None:
        """Raises RequestError: onnxruntime is not installed, or the files do not fit each other."""
        try:
            import onnxruntime
        except ImportError:
            raise RequestError(
                "[tagger] needs onnxruntime, which is not installed. "
                "Run: pip install 'urushi[tagger]'"
            ) from None
        self.tags = read_tags(folder / TAGS_FILE)
        have = onnxruntime.get_available_providers()
        self._session = _session(
            onnxruntime, folder / MODEL_FILE, [p for p in PROVIDERS if p in have]
        )
        (self._input,) = self._session.get_inputs()
        count = self._session.get_outputs()[0].shape[-1]
        if len(self._input.shape) != 4 or self._input.shape[3] != 3:
            raise RequestError(
                f"{folder / MODEL_FILE} takes {self._input.shape}, not pictures as "
                "(batch, side, side, 3)."
            )
        if isinstance(count, int) and count != len(self.tags):
            raise RequestError(
                f"{folder / MODEL_FILE} tells {count} tags and {folder / TAGS_FILE} names "
                f"{len(self.tags)}. They belong to different models."
            )
        self.side = int(self._input.shape[1])
        """Pixels a side of what the model sees."""

    def __call__(self, pictures: Sequence[Pixels]) -> list[tuple[Guess, ...]]:
        """The guesses of each picture of `prepared`, in the table's order."""
        (found,) = self._session.run(None, {self._input.name: np.stack(pictures)})[:1]
        return [
            tuple(
                Guess(category, tag, float(p))
                for (category, tag), p in zip(self.tags, row, strict=True)
            )
            for row in found
        ]


def _session(runtime: Any, path: Path, providers: list[str]) -> "onnxruntime.InferenceSession":
    try:
        return runtime.InferenceSession(path, providers=providers)
    except Exception as error:  # onnxruntime's own errors share no parent.
        raise RequestError(
            f"{path} is no ONNX model that can be opened ({type(error).__name__}). Get it again."
        ) from error


def prepared(path: Path, side: int) -> Pixels:
    """A picture as the model was trained to see it: on white, padded to a square, BGR.

    Raises:
        OSError: it cannot be read as a picture.
    """
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGBA")
    square = max(picture.size)
    canvas = Image.new("RGBA", (square, square), "white")
    canvas.alpha_composite(picture, ((square - picture.width) // 2, (square - picture.height) // 2))
    seen = canvas.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(seen, dtype=np.float32)[:, :, ::-1]


def chosen(guesses: Sequence[Guess], general: float, character: float) -> Iterator[Guess]:
    """The guesses that reach their category's threshold; ratings are not tags."""
    least = {"general": general, "character": character}
    return (g for g in guesses if g.probability >= least.get(g.category, 2.0))
