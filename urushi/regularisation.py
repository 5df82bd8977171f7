"""A look at regularisation pictures: are they drawn by a model, or nothing at all?"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pipeline.artefacts.records import ImageRecord

LOOKED_AT = 200
"""Pictures opened at most, spread evenly: enough to see a tenth of them."""
GENERATED_TAGS = frozenset(("ai-generated", "ai_generated", "ai-assisted", "stable_diffusion"))
PROMPTS = ("parameters", "prompt", "workflow", "invokeai_metadata")
"""Texts that A1111, ComfyUI and InvokeAI write into their PNGs."""


def looked_at(root: Path, images: Sequence[ImageRecord]) -> tuple[int, int, int]:
    """(looked at, wholly transparent, drawn by a model) of the pictures under `root`."""
    chosen = images[:: max(1, len(images) // LOOKED_AT)][:LOOKED_AT]
    transparent = generated = 0
    for image in chosen:
        tags = {tag.lower() for names in image.tags.values() for tag in names}
        try:
            with Image.open(root / image.path) as picture:
                said = any(name in picture.info for name in PROMPTS)
                transparent += _is_nothing(picture)
        except (OSError, ValueError, SyntaxError):
            said = False  # What cannot be read, resize tells.
        generated += said or bool(tags & GENERATED_TAGS)
    return len(chosen), transparent, generated


def _is_nothing(picture: Image.Image) -> bool:
    if not picture.has_transparency_data:
        return False
    return picture.convert("RGBA").getchannel("A").getextrema()[1] == 0
