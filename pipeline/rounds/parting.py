"""Strengths of several LoRAs as the one list of numbers that a search or a refit moves.

A LoRA whose text encoders have a strength of their own takes two numbers, another one. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.artefacts.strength import Strength, parted


@dataclass(frozen=True)
class Parting:
    """Which of the LoRAs take two numbers."""

    apart: tuple[bool, ...]

    def flat(self, strengths: Sequence[Strength]) -> tuple[float, ...]:
        """The numbers of these strengths, each LoRA's UNet before its text encoders."""
        pairs = zip(self.apart, strengths, strict=True)
        return tuple(number for apart, s in pairs for number in parted(s)[: 1 + apart])

    def strengths(self, flat: Sequence[float]) -> tuple[Strength, ...]:
        """The strengths of these numbers; linear in them."""
        numbers, made = iter(flat), list[Strength]()
        for apart in self.apart:
            unet = next(numbers)
            made.append((unet, next(numbers)) if apart else unet)
        return tuple(made)
