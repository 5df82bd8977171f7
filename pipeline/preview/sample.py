"""One checkpoint into a picture per prompt and seed, folder/NN.png; a receipt, so as to draw once.

Imports torch only when something has to be drawn. By hand: `urushi preview RECIPE`.
"""

import time
from pathlib import Path
from typing import Any

from pipeline.artefacts.chain import TEXT_KEYS
from pipeline.artefacts.files import atomic, translated
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.receipts import NAME, done, write_receipt
from pipeline.progress import Progress
from pipeline.recipe.base import Base
from pipeline.recipe.preview import Preview
from pipeline.recipe.shots import shots
from pipeline.size import Size

VERSION = 3
"""Raised when the same settings would draw other pictures."""


def settings(preview: Preview, size: Size) -> dict[str, Any]:
    """All that the pictures depend on beside the checkpoint, as JSON values."""
    return {
        "prompts": list(preview.prompts),
        "negative": preview.negative,
        "seed": preview.seed,
        "seeds": preview.seeds,
        "steps": preview.steps,
        "guidance": preview.guidance,
        "width": size.width,
        "height": size.height,
    }


def reading(base: Base) -> dict[str, Any]:
    """How prompts are read, where that is not as usual."""
    return base.model_dump(mode="json", include=set(TEXT_KEYS), exclude_defaults=True)


def sample_fingerprint(identity: str, base: Base, preview: Preview, size: Size) -> str:
    """Of the checkpoint's identity, how prompts are read, and the settings; enlargement is the
    grid's business."""
    return fingerprint(
        stage="preview",
        version=VERSION,
        identity=identity,
        settings=settings(preview, size),
        **reading(base),
    )


def picture_paths(folder: Path, count: int) -> list[Path]:
    """folder/00.png, 01.png, …: one per shot, in their order."""
    return [folder / f"{index:02d}.png" for index in range(count)]


def is_sampled(base: Base, preview: Preview, size: Size, folder: Path, identity: str) -> bool:
    """Whether `folder` already holds these pictures of this checkpoint."""
    return done(folder, sample_fingerprint(identity, base, preview, size)) is not None


def sample(
    base: Base,
    checkpoint: Path | None,
    preview: Preview,
    size: Size,
    folder: Path,
    identity: str,
    progress: Progress,
    *,
    what: str = "samples",
) -> list[Path]:
    """Draws every shot with the origin (`checkpoint` None) or a round's checkpoint into `folder`.

    Does nothing where a receipt proves it done. Hold the lock of the build that `folder` is in.

    Args:
        size: of a picture, pixels.
        identity: of the weights; the same weights must have the same one.
        what: the bar's name.

    Raises:
        RequestError: the base or the checkpoint cannot be loaded, or `folder` not written.
        DiskFullError: no room left.
    """
    paths = picture_paths(folder, len(shots(preview)))
    if is_sampled(base, preview, size, folder, identity):
        return paths
    from pipeline.preview.draw import draw

    start = time.monotonic()
    pictures = draw(base, checkpoint, preview, size, progress, what=what)
    # The older receipt goes first: it must not vouch for a mixture of old and new pictures.
    with translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NAME).unlink(missing_ok=True)
        for stale in folder.glob("*.png"):
            stale.unlink()
    for path, picture in zip(paths, pictures, strict=True):
        with atomic(path) as temporary:
            picture.save(temporary, format="PNG")
    write_receipt(
        folder,
        "preview",
        sample_fingerprint(identity, base, preview, size),
        inputs={"identity": identity, **settings(preview, size), **reading(base)},
        outputs=paths,
        summary={"pictures": len(paths)},
        seconds=time.monotonic() - start,
    )
    return paths
