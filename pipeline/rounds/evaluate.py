"""Held-out loss of a UNet with a LoRA at some strength; nothing is written to its weights."""

from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import PartialState

from pipeline.models.load import load_scheduler, load_unet
from pipeline.models.scaling import latent_scaling
from pipeline.models.shards import open_latents, open_texts
from pipeline.recipe import BuildRecipe
from pipeline.rounds.split import HeldOutPicture, Split
from pipeline.train.adapter import attach, load_lora, set_strength
from pipeline.train.ahead import moved
from pipeline.train.conditioning import conditioning, predict
from pipeline.train.counted import gaussian
from pipeline.train.objective import noisy, sample_losses, target

Item = tuple[HeldOutPicture, int]
"""A picture and which of its timesteps."""

BATCH = 16
"""Samples in one forward pass; the mean does not depend on it but for the last bits."""


class HeldOut:
    """One checkpoint with one LoRA attached, ready to be judged at any strength.

    The mean of each picture's latent is used, the caption is never dropped, and losses are
    accumulated in float32: what is left to vary is the strength.
    """

    def __init__(
        self,
        recipe: BuildRecipe,
        checkpoint: Path | None,
        lora: Path,
        latents: Path,
        texts: Path,
    ) -> None:
        self._device = PartialState().device
        self._scheduler = load_scheduler(recipe.base)
        self._scaling = latent_scaling(recipe.base)
        self._latents, self._texts = open_latents(latents), open_texts(texts)
        self._unet = load_unet(recipe.base, checkpoint)
        attach(self._unet, recipe.lora, recipe.seed)
        load_lora(self._unet, lora)
        self._unet.to(self._device).eval()

    @torch.no_grad()
    def losses(self, split: Split, strength: float, *, chooses: bool) -> list[float]:
        """One loss per picture of the asked-for half, the mean over its timesteps."""
        set_strength(self._unet, strength)
        half = [picture for picture in split.held_out if picture.chooses == chooses]
        totals = dict.fromkeys((picture.md5 for picture in half), 0.0)
        for group in self._batches(half):
            latents = torch.stack(
                [self._latents.latent(p.md5)[0].float() * self._scaling for p, _ in group]
            )
            rows = [self._latents.record(p.md5) for p, _ in group]
            told = conditioning(self._texts, [(p.md5, 0) for p, _ in group], rows)
            noise = torch.stack(
                [gaussian(tuple(latents.shape[1:]), p.noise_seeds[i]) for p, i in group]
            )
            timesteps = torch.tensor([p.timesteps[i] for p, i in group])
            latents, noise, timesteps = (x.to(self._device) for x in (latents, noise, timesteps))
            mixed = noisy(self._scheduler, latents, noise, timesteps)
            prediction = predict(self._unet, mixed, timesteps, moved(told, self._device))
            wanted = target(self._scheduler, latents, noise, timesteps)
            for (picture, _), loss in zip(
                group, sample_losses(prediction, wanted).tolist(), strict=True
            ):
                totals[picture.md5] += loss / len(picture.timesteps)
        return [totals[picture.md5] for picture in half]

    def _batches(self, half: list[HeldOutPicture]) -> Iterator[list[Item]]:
        """Every (picture, timestep) of `half`, in batches of one bucket each."""
        rows = {picture.md5: self._latents.record(picture.md5) for picture in half}
        sizes = {md5: (row.width, row.height) for md5, row in rows.items()}
        for bucket in sorted({sizes[picture.md5] for picture in half}):
            items = [
                (picture, part)
                for picture in half
                if sizes[picture.md5] == bucket
                for part in range(len(picture.timesteps))
            ]
            for start in range(0, len(items), BATCH):
                yield items[start : start + BATCH]
