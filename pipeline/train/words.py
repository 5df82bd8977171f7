"""Where a batch's captions come from: cached as the text encoders' output, or in words, encoded as
the training goes.

A picture's texts are the same ones under the same numbers either way.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pipeline.artefacts.chain import CAPTIONS_FILE
from pipeline.artefacts.receipts import done, read_receipt
from pipeline.artefacts.records import CaptionRecord, LatentRecord, read_records
from pipeline.errors import RequestError, UrushiError
from pipeline.models.places import EMPTY_CAPTION
from pipeline.models.shards import TextStore, open_texts
from pipeline.models.text import TextStack
from pipeline.train.conditioning import Conditioning, Spoken, TextKey, conditioning, sizes_of


class Words(Protocol):
    """The texts of one dataset."""

    def variants(self, md5: str) -> int:
        """How many texts the picture has: at least 1."""

    def told(
        self, keys: Sequence[TextKey], pictures: Sequence[LatentRecord]
    ) -> Conditioning | Spoken:
        """The texts `keys` of `pictures`, in their order, on the CPU."""


class Cached:
    """What the text encoders gave."""

    def __init__(self, texts: TextStore) -> None:
        self._texts = texts

    def variants(self, md5: str) -> int:
        return self._texts.variants(md5)

    def told(self, keys: Sequence[TextKey], pictures: Sequence[LatentRecord]) -> Conditioning:
        return conditioning(self._texts, keys, pictures)


class Live:
    """Captions in tokens, for encoders that learn or have learnt."""

    def __init__(self, folder: Path, text: TextStack) -> None:
        """Raises RequestError where the captions in `folder` are not written."""
        receipt = read_receipt(folder)
        if receipt is None or done(folder, receipt.fingerprint) is None:
            raise RequestError(
                f"The captions in {folder} are not written yet. Run `urushi caption` first."
            )
        records = read_records(folder / CAPTIONS_FILE, CaptionRecord)
        self._texts = {record.md5: (record.caption, *record.texts) for record in records}
        self._texts[EMPTY_CAPTION] = ("",)
        self._folder, self._stack = folder, text

    def variants(self, md5: str) -> int:
        return len(self._of(md5))

    def told(self, keys: Sequence[TextKey], pictures: Sequence[LatentRecord]) -> Spoken:
        captions = [self._of(md5)[variant] for md5, variant in keys]
        return Spoken(self._stack.tokens(captions), sizes_of(pictures))

    def _of(self, md5: str) -> tuple[str, ...]:
        found = self._texts.get(md5)
        if found is None:
            raise UrushiError(
                f"{self._folder} has no caption of picture {md5}. Run `urushi caption` again."
            )
        return found


def open_words(folder: Path, text: TextStack | None) -> Words:
    """Of the text shards in `folder`; of the captions there, where `text` is to encode them.

    Raises:
        RequestError: they are not finished.
    """
    return Cached(open_texts(folder)) if text is None else Live(folder, text)
