"""Captions into what the UNet is conditioned on: CLIP tokenizers and text encoders.

SD 1.5 has one encoder and takes its final hidden states. SDXL has two and takes the penultimate
layer of both, joined, and the second one's pooled output (Podell et al. 2023, arXiv 2307.01952,
section 2.1; StableDiffusionXLPipeline.encode_prompt).

Captions of more than 75 tokens are cut into chunks of 75 that are encoded apart, each with a start
and an end of its own, and joined, as A1111's web UI does; SDXL's pooled output is the first one's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

PENULTIMATE = -2
"""Index into an encoder's hidden states, of which the last is what its last layer gives."""


class Encoding(NamedTuple):
    """What captions come to."""

    hidden: Tensor
    """(N, 77 x chunks, D) float32: 768 features a token in SD 1.5, 2048 in SDXL."""
    pooled: Tensor | None
    """(N, P) float32 in SDXL, 1280 features a caption; None in SD 1.5, which has none."""


@dataclass(frozen=True)
class Reader:
    """One text encoder with its tokenizer."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel | CLIPTextModelWithProjection

    @property
    def length(self) -> int:
        """Tokens of a chunk, start and end included: 77."""
        return int(self.encoder.config.max_position_embeddings)

    def tokens(self, captions: Sequence[str], chunks: int = 1) -> Tensor:
        """(N, 77 x chunks) int64 on the CPU, padded to the full length, cut there."""
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        pad, inside = self.tokenizer.pad_token_id, self.length - 2
        found = self.tokenizer(list(captions), add_special_tokens=False, verbose=False).input_ids
        rows = []
        for caption in found:
            row: list[int] = []
            for chunk in range(chunks):
                part = caption[chunk * inside : (chunk + 1) * inside]
                row += [start, *part, end, *[pad] * (inside - len(part))]
            rows.append(row)
        return torch.tensor(rows, dtype=torch.int64)

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption, uncut, without start and end."""
        ids = self.tokenizer(list(captions), add_special_tokens=False, verbose=False).input_ids
        return [len(row) for row in ids]


@dataclass(frozen=True)
class TextStack:
    """A family's text encoders, on one device, in the order in which their states are joined."""

    readers: tuple[Reader, ...]
    clip_skip: int = 1
    """SD 1.5's layer, counted from the end; 1 is the last. Others are put through the final norm,
    as StableDiffusionPipeline.encode_prompt does (whose clip_skip is one less)."""
    chunks: int = 1

    @property
    def length(self) -> int:
        """Tokens per caption, starts and ends included: 77 a chunk."""
        return self.readers[0].length * self.chunks

    @property
    def width(self) -> int:
        """Features per token: 768 in SD 1.5, 2048 in SDXL."""
        return sum(int(reader.encoder.config.hidden_size) for reader in self.readers)

    @property
    def pooled_width(self) -> int | None:
        """Features of the pooled output: 1280 in SDXL, None in SD 1.5."""
        return int(self.readers[-1].encoder.config.projection_dim) if self._two else None

    @property
    def depths(self) -> tuple[int, ...]:
        """How many layers of each encoder what it gives depends on: the pooled output is its last
        layer's."""
        skipped = (1, 0) if self._two else (self.clip_skip - 1,)
        return tuple(
            int(reader.encoder.config.num_hidden_layers) - layers
            for reader, layers in zip(self.readers, skipped, strict=True)
        )

    @property
    def _two(self) -> bool:
        return len(self.readers) > 1

    def to(self, device: torch.device | str) -> "TextStack":
        """The same with its encoders moved to `device`."""
        for reader in self.readers:
            reader.encoder.to(device)
        return self

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Encoding:
        """What the family's own diffusers pipeline makes of `captions`."""
        if not captions:
            device = self.readers[0].encoder.device
            pooled = self.pooled_width
            return Encoding(
                torch.zeros(0, self.length, self.width, device=device),
                None if pooled is None else torch.zeros(0, pooled, device=device),
            )
        return self.forward(self.tokens(captions))

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """(N, encoders, 77 x chunks) int64 on the CPU: what `forward` reads."""
        return torch.stack([reader.tokens(captions, self.chunks) for reader in self.readers], 1)

    def forward(self, tokens: Tensor) -> Encoding:
        """As `encode`, from `tokens` of captions; gradients flow."""
        count, length = tokens.shape[0], self.readers[0].length
        chunks = [
            ids.reshape(-1, length).to(reader.encoder.device)
            for reader, ids in zip(self.readers, tokens.unbind(1), strict=True)
        ]
        if not self._two:
            hidden = self._read_one(chunks[0])
            return Encoding(hidden.reshape(count, -1, hidden.shape[-1]).float(), None)
        answers = [
            reader.encoder(ids, output_hidden_states=True)
            for reader, ids in zip(self.readers, chunks, strict=True)
        ]
        joined = torch.cat([answer.hidden_states[PENULTIMATE] for answer in answers], dim=-1)
        pooled = answers[-1].text_embeds
        return Encoding(
            joined.reshape(count, -1, joined.shape[-1]).float(),
            pooled.reshape(count, -1, pooled.shape[-1])[:, 0].float(),
        )

    def _read_one(self, ids: Tensor) -> Tensor:
        encoder = self.readers[0].encoder
        hidden: Tensor
        if self.clip_skip == 1:
            hidden = encoder(ids).last_hidden_state
            return hidden
        layer = encoder(ids, output_hidden_states=True).hidden_states[-self.clip_skip]
        # transformers has moved the norm from inside `text_model` to the encoder itself.
        hidden = getattr(encoder, "text_model", encoder).final_layer_norm(layer)
        return hidden

    def overlong(self, captions: Sequence[str]) -> int:
        """How many of the captions have more tokens than fit, so that `encode` cuts their ends."""
        if not captions:
            return 0
        most = (self.readers[0].length - 2) * self.chunks
        lengths = zip(*(reader.lengths(captions) for reader in self.readers), strict=True)
        return sum(max(each) > most for each in lengths)
