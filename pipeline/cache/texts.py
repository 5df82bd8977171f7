"""Texts into the text encoders' hidden states and, of SDXL, pooled output."""

import torch
from torch import Tensor

from pipeline.artefacts.executor import Advance
from pipeline.artefacts.records import Failure
from pipeline.cache.encoded import Encoded
from pipeline.cache.plan import OVERLONG, Shard, Text
from pipeline.models.text import TextStack

BATCH = 64
"""Texts encoded together: at 77 tokens each, less memory than one picture takes in the VAE."""


class TextEncoder:
    """Encodes shards of texts."""

    def __init__(self, text: TextStack) -> None:
        self._text = text

    def __call__(self, shard: Shard[Text], advance: Advance) -> Encoded:
        """The shard's tensors "hidden", (N, 77 x chunks, D), and SDXL's "pooled", (N, P), both
        float16, good rows only."""
        text, count = self._text, len(shard.items)
        hidden = torch.empty(count, text.length, text.width, dtype=torch.float16)
        width = text.pooled_width
        pooled = None if width is None else torch.empty(count, width, dtype=torch.float16)
        rows: list[int] = []
        failures: list[Failure] = []
        overlong = 0
        batch_size = max(1, BATCH // text.chunks)
        for start in range(0, count, batch_size):
            batch = shard.items[start : start + batch_size]
            captions = [item.text for item in batch]
            states, pool = (None if t is None else t.half().cpu() for t in text.encode(captions))
            assert states is not None
            finite = states.isfinite().flatten(1).all(1)
            if pool is not None:
                finite &= pool.isfinite().all(1)
            kept = slice(len(rows), len(rows) + int(finite.sum()))
            hidden[kept] = states[finite]
            if pooled is not None and pool is not None:
                pooled[kept] = pool[finite]
            for place, good in enumerate(finite.tolist()):
                if good:
                    rows.append(start + place)
                else:
                    reason = "the text encoder gives NaN or infinity for it"
                    failures.append(Failure(md5=batch[place].md5, reason=reason))
            overlong += text.overlong(captions)
            advance(len(batch))
        tensors: dict[str, Tensor] = {"hidden": hidden[: len(rows)]}
        if pooled is not None:
            tensors["pooled"] = pooled[: len(rows)]
        return Encoded(tensors, tuple(rows), tuple(failures), {OVERLONG: overlong})
