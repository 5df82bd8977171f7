"""Captions into hidden states: a CLIP tokenizer and text encoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class TextStack:
    """What turns captions into the UNet's conditioning, on the device where the encoder is."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel

    @property
    def length(self) -> int:
        """Tokens per caption, start and end included: 77."""
        return int(self.encoder.config.max_position_embeddings)

    @property
    def width(self) -> int:
        """Features per token: 768 in SD 1.5."""
        return int(self.encoder.config.hidden_size)

    def to(self, device: torch.device | str) -> "TextStack":
        """The same with its encoder moved to `device`."""
        return TextStack(self.tokenizer, self.encoder.to(device))

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Tensor:
        """Final hidden states, after the last layer norm: (N, 77, D) float32.

        Padded to the full length and cut there, as StableDiffusionPipeline.encode_prompt does.
        """
        if not captions:
            return torch.zeros(0, self.length, self.width, device=self.encoder.device)
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )
        ids = tokens.input_ids.to(self.encoder.device)
        hidden: Tensor = self.encoder(ids).last_hidden_state
        return hidden.float()

    def overlong(self, captions: Sequence[str]) -> int:
        """How many of the captions have more tokens than fit, so that `encode` cuts their ends."""
        if not captions:
            return 0
        ids = self.tokenizer(list(captions), truncation=False, verbose=False).input_ids
        return sum(len(row) > self.length for row in ids)
