"""Models, prompts and seeds into one labelled PNG, and a JSON of what was drawn.

Each model's pictures lie in WORKSPACE/compare/FINGERPRINT with a receipt, so that a comparison goes
on where it was stopped, and a larger one draws only what is new. A LoRA is merged into a temporary
checkpoint exactly as `urushi merge` does it, which is removed once its pictures are drawn.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge import Addend
from merge.errors import MergeError
from pipeline.artefacts.files import remove, write_json
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.locks import locked
from pipeline.artefacts.workspace import Workspace
from pipeline.errors import RequestError
from pipeline.models.inspect import inspect, require_supported
from pipeline.preview.axes import Arrangement, Axis, Variant, arrange
from pipeline.preview.grid import write_grid
from pipeline.preview.sample import is_sampled, picture_paths, sample, sample_fingerprint, settings
from pipeline.progress import Progress
from pipeline.recipe.base import Base
from pipeline.recipe.preview import Preview
from pipeline.recipe.shots import shots
from pipeline.size import Size
from urushi.progress import Terminal

SIDES = {"sd15": 512, "sdxl": 1024}
"""Pixels a side that a family was trained at."""
STEP = 8


@dataclass(frozen=True)
class Asked:
    """What a person asks for; see `urushi compare --help`."""

    checkpoints: tuple[Path, ...]
    loras: tuple[Path, ...]
    strengths: str
    x: Axis | None
    y: Axis | None
    prompts: tuple[str, ...]
    negative: str
    seed: int
    seeds: int
    steps: int
    guidance: float
    width: int | None
    height: int | None
    enlarge: int
    config: Path | None


def compare_models(asked: Asked, out: Path, workspace: Path) -> None:
    """Draws what is not drawn yet, writes `out` and the JSON beside it, and says where they are.

    Raises:
        RequestError: a model, LoRA, strength, size or axis is not one; before anything is drawn.
        MergeError: a LoRA does not fit a checkpoint.
    """
    if out.suffix.lower() != ".png":
        raise RequestError(f"--out {out} should end in .png.")
    strengths = parse_strengths(asked.strengths)
    for axis in ("lora", "strength"):
        if not asked.loras and axis in (asked.x, asked.y):
            raise RequestError(f"{axis} is no axis without a LoRA. Give one with --lora FILE.")
    if asked.x is not None and asked.x == asked.y:
        raise RequestError(f"--x and --y are both {asked.x}. Give two different axes, or one.")
    missing = [lora for lora in asked.loras if not lora.is_file()]
    if missing:
        raise RequestError(f"There is no LoRA {missing[0]} (--lora).")
    bases = {
        path: Base(checkpoint=path.absolute(), config=_folder(asked)) for path in asked.checkpoints
    }
    size = picture_size(asked, bases)
    preview = Preview(
        prompts=asked.prompts,
        negative=asked.negative,
        seed=asked.seed,
        seeds=asked.seeds,
        steps=asked.steps,
        guidance=asked.guidance,
    )
    grid = arrange(asked.checkpoints, asked.loras, strengths, preview, asked.x, asked.y)
    place, progress = Workspace(workspace.resolve()), Terminal()
    drawn = {
        variant: _drawn(variant, bases[variant.checkpoint], preview, size, place, progress)
        for variant in grid.variants
    }
    pictures = [
        [drawn[cell.variant].pictures[cell.shot] for cell in column] for column in grid.cells
    ]
    write_grid(list(zip(grid.columns, pictures, strict=True)), grid.rows, asked.enlarge, out)
    write_json(out.with_suffix(".json"), _told(grid, drawn, preview, size, place))
    many = sum(len(column) for column in grid.cells)
    print(f"{out}: {len(grid.columns)} x {len(grid.rows)}, {many} pictures")
    print(f"{out.with_suffix('.json')}: what was drawn, and where each picture lies")


@dataclass(frozen=True)
class Drawn:
    """One model's pictures."""

    identity: str
    digests: dict[str, str]
    """BLAKE3 of the checkpoint and of the LoRA."""
    pictures: tuple[Path, ...]


def parse_strengths(text: str) -> tuple[float, ...]:
    """ "0,0.5,1" as numbers, each once. Raises RequestError for what is none."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(number) for number in numbers):
        raise RequestError(f"--strength {text} is not numbers with commas, such as 0,0.5,1.")
    return tuple(dict.fromkeys(numbers))


def read_prompts(path: Path) -> tuple[str, ...]:
    """The prompts in `path`, a line each.

    Raises:
        RequestError: there is no such file, it is no text, or it holds no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"--prompts {path} cannot be read ({error}). Give a text file, one prompt a line."
        ) from None
    prompts = [line.strip() for line in lines]
    prompts = [line for line in prompts if line and not line.startswith("#")]
    if not prompts:
        raise RequestError(f"--prompts {path} holds no prompt. Write one a line.")
    return tuple(dict.fromkeys(prompts))


def picture_size(asked: Asked, bases: dict[Path, Base]) -> Size:
    """What all pictures are drawn at: the asked-for sides, or the largest family's own.

    Raises:
        RequestError: a checkpoint is not one that can be drawn with, or a side is no multiple of 8.
    """
    sides = []
    for base in bases.values():
        facts = inspect(base)
        require_supported(facts)
        sides.append(SIDES[facts.family])
    width = asked.width or max(sides)
    size = Size(width, asked.height or width)
    for name, side in (("width", size.width), ("height", size.height)):
        if side < STEP or side % STEP:
            nearest = max(STEP, round(side / STEP) * STEP)
            raise RequestError(f"--{name} {side} is not a multiple of {STEP}. Use {nearest}.")
    return size


def _folder(asked: Asked) -> Path | None:
    return asked.config.absolute() if asked.config is not None else None


def _drawn(
    variant: Variant, base: Base, preview: Preview, size: Size, place: Workspace, progress: Progress
) -> Drawn:
    digests = {"checkpoint": place.identities.of(base.checkpoint)}
    if base.config is not None:
        digests["config"] = place.identities.of(base.config)
    if variant.lora is not None:
        digests["lora"] = place.identities.of(variant.lora)
    identity = fingerprint(**digests, strength=variant.strength)
    folder = place.comparison(sample_fingerprint(identity, base, preview, size))
    what = _named(variant)
    with locked(folder):
        if not is_sampled(base, preview, size, folder, identity):
            merged = _merged(variant, base, folder, progress) if variant.lora else None
            try:
                sample(base, merged, preview, size, folder, identity, progress, what=what)
            finally:
                if merged is not None:
                    remove(merged)
    return Drawn(identity, digests, tuple(picture_paths(folder, len(shots(preview)))))


def _merged(variant: Variant, base: Base, folder: Path, progress: Progress) -> Path:
    from merge import merge

    assert variant.lora is not None
    out = folder / f"merged{'' if base.checkpoint.is_dir() else '.safetensors'}"
    remove(out)
    progress.say(f"{_named(variant)}: merging")
    try:
        merge(base.checkpoint, [Addend(variant.lora, variant.strength)], out)
    except MergeError:
        remove(out)
        raise
    return out


def _named(variant: Variant) -> str:
    if variant.lora is None:
        return variant.checkpoint.stem
    return f"{variant.checkpoint.stem} + {variant.strength:g} {variant.lora.stem}"


def _told(
    grid: Arrangement, drawn: dict[Variant, Drawn], preview: Preview, size: Size, place: Workspace
) -> dict[str, Any]:
    """What was drawn, as JSON: the same request gives the same text."""
    wanted = shots(preview)
    pictures = []
    for x, column in enumerate(grid.cells):
        for y, cell in enumerate(column):
            variant, shown = cell.variant, drawn[cell.variant]
            pictures.append(
                {
                    "column": x,
                    "row": y,
                    "checkpoint": str(variant.checkpoint),
                    "lora": str(variant.lora) if variant.lora else None,
                    "strength": variant.strength,
                    "blake3": shown.digests,
                    "prompt": wanted[cell.shot].prompt,
                    "seed": wanted[cell.shot].seed,
                    "file": str(shown.pictures[cell.shot].relative_to(place.root)),
                }
            )
    return {
        "settings": settings(preview, size),
        "columns": list(grid.columns),
        "rows": list(grid.rows),
        "pictures": pictures,
    }
