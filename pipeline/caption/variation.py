"""One caption into several texts: shuffled behind a kept head, some tags left out, own words added.

Each text is a function of (seed, picture, number) alone, so that it can be encoded once, cached,
and found again after any interruption. Which of them is shown when is up to training.
"""

from collections.abc import Sequence

from pipeline.artefacts.identity import digest_bytes
from pipeline.artefacts.records import ImageRecord
from pipeline.recipe.caption import Variation

SEPARATOR = ", "


def parted(image: ImageRecord, separator: str) -> ImageRecord:
    """`image` with `separator` as a tag of its own: "halo ||| sky" is three tags."""
    return image.model_copy(
        update={
            "tags": {
                category: tuple(part for tag in tags for part in _parts(tag, separator))
                for category, tags in image.tags.items()
            }
        }
    )


def _parts(tag: str, separator: str) -> tuple[str, ...]:
    before, found, after = tag.partition(separator)
    return tuple(part for part in (before.strip(), found, after.strip()) if part)


def other_texts(
    caption: str, own: Sequence[str], md5: str, variation: Variation
) -> tuple[str, ...]:
    """What else may stand for `caption`: `own` texts of the picture, then variants of the caption.

    At most as many as `variation.count` asks for besides the caption itself, and no text twice: a
    caption of two words cannot be shuffled five ways.
    """
    elements = caption.split(SEPARATOR) if caption else []
    variants = (
        SEPARATOR.join(varied(elements, md5, number, variation))
        for number in range(1, variation.count)
    )
    texts = dict.fromkeys([*own, *variants])
    texts.pop(caption, None)
    return tuple(texts)


def varied(elements: Sequence[str], md5: str, number: int, variation: Variation) -> list[str]:
    """`elements` as variant `number` of the picture `md5` says them; the first `keep` stand."""
    head, tail = list(elements[: variation.keep]), list(elements[variation.keep :])

    def drawn(what: str, element: str) -> int:
        """Uniform in [0, 2^64)."""
        text = f"{what} {variation.seed} {md5} {number} {element}"
        return int(digest_bytes(text.encode())[:16], 16)

    if variation.tag_dropout:
        bar = int(variation.tag_dropout * 2**64)
        tail = [element for element in tail if drawn("drop", element) >= bar]
    if variation.shuffle:
        tail.sort(key=lambda element: drawn("shuffle", element))
    return head + tail
