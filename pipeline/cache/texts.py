"""Captions into the text encoder's hidden states."""

import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.artefacts.records import CaptionRecord, Failure
from pipeline.cache.plan import OVERLONG, Shard
from pipeline.cache.shards import Encoded
from pipeline.models.text import TextStack
from pipeline.progress import Bar

BATCH = 64
"""Captions encoded together: at 77 tokens each, less memory than one picture takes in the VAE."""


class TextEncoder:
    """Encodes shards of captions."""

    def __init__(self, text: TextStack) -> None:
        self._text = text

    def __call__(self, shard: Shard[CaptionRecord], bar: Bar) -> Encoded:
        """The shard's tensors "hidden", (N, 77, D) float16, and for SDXL "pooled", (N, P) float16;
        good rows only."""
        rows: list[str] = []
        failures: list[Failure] = []
        parts: dict[str, list[Tensor]] = {}
        overlong = 0
        for start in range(0, len(shard.items), BATCH):
            batch = shard.items[start : start + BATCH]
            captions = [item.caption for item in batch]
            encoded = self._text.encode(captions)._asdict().items()
            tensors = {name: t.half().cpu() for name, t in encoded if t is not None}
            sound = [tensor.isfinite().flatten(1).all(1) for tensor in tensors.values()]
            finite = torch.stack(sound).all(0)
            for name, tensor in tensors.items():
                parts.setdefault(name, []).append(tensor[finite])
            for item, good in zip(batch, finite.tolist(), strict=True):
                if good:
                    rows.append(item.md5)
                else:
                    reason = "the text encoder gives NaN or infinity for it"
                    failures.append(Failure(md5=item.md5, reason=reason))
            overlong += self._text.overlong(captions)
            bar.advance(len(batch))
        counts = {OVERLONG: overlong}
        if not rows:
            return Encoded(b"", (), tuple(failures), counts)
        return Encoded(
            save({k: torch.cat(v) for k, v in parts.items()}), tuple(rows), tuple(failures), counts
        )
