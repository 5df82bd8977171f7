"""Captions into what the UNet is conditioned on: CLIP tokenizers and text encoders.

SD 1.5 has one encoder and takes its final hidden states. SDXL has two and takes the penultimate
layer of both, joined, and the second one's pooled output (Podell et al. 2023, arXiv 2307.01952,
section 2.1; StableDiffusionXLPipeline.encode_prompt).
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
    """(N, 77, D) float32: 768 features a token in SD 1.5, 2048 in SDXL."""
    pooled: Tensor | None
    """(N, P) float32 in SDXL, 1280 features a caption; None in SD 1.5, which has none."""


@dataclass(frozen=True)
class Reader:
    """One text encoder with its tokenizer."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel | CLIPTextModelWithProjection

    @property
    def length(self) -> int:
        """Tokens per caption, start and end included: 77."""
        return int(self.encoder.config.max_position_embeddings)

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """(N, 77) int64 on the encoder's device, padded to the full length and cut there."""
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )
        ids: Tensor = tokens.input_ids.to(self.encoder.device)
        return ids

    def lengths(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption, uncut."""
        ids = self.tokenizer(list(captions), truncation=False, verbose=False).input_ids
        return [len(row) for row in ids]


@dataclass(frozen=True)
class TextStack:
    """A family's text encoders, on one device, in the order in which their states are joined."""

    readers: tuple[Reader, ...]

    @property
    def length(self) -> int:
        """Tokens per caption, start and end included: 77."""
        return self.readers[0].length

    @property
    def width(self) -> int:
        """Features per token: 768 in SD 1.5, 2048 in SDXL."""
        return sum(int(reader.encoder.config.hidden_size) for reader in self.readers)

    @property
    def pooled_width(self) -> int | None:
        """Features of the pooled output: 1280 in SDXL, None in SD 1.5."""
        return int(self.readers[-1].encoder.config.projection_dim) if self._two else None

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
        return self.forward([reader.tokens(captions) for reader in self.readers])

    def forward(self, tokens: Sequence[Tensor]) -> Encoding:
        """As `encode`, from each reader's tokens, (N, 77) int64; gradients flow."""
        if not self._two:
            hidden: Tensor = self.readers[0].encoder(tokens[0]).last_hidden_state
            return Encoding(hidden.float(), None)
        answers = [
            reader.encoder(ids, output_hidden_states=True)
            for reader, ids in zip(self.readers, tokens, strict=True)
        ]
        joined = torch.cat([answer.hidden_states[PENULTIMATE] for answer in answers], dim=-1)
        return Encoding(joined.float(), answers[-1].text_embeds.float())

    def overlong(self, captions: Sequence[str]) -> int:
        """How many of the captions have more tokens than fit, so that `encode` cuts their ends."""
        if not captions:
            return 0
        lengths = zip(*(reader.lengths(captions) for reader in self.readers), strict=True)
        return sum(max(each) > self.length for each in lengths)
