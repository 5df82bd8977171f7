"""Held-out loss of a network with LoRAs at some strengths; nothing is written to its weights.

The weights lie as they do in training, and the same calls ask them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artefacts.strength import Strength
from pipeline.models.load import load_scheduler
from pipeline.models.places import CacheFolders
from pipeline.models.scaling import latent_scaling
from pipeline.models.shards import open_latents
from pipeline.recipe import BuildRecipe
from pipeline.rounds.refit import Quadratic, quadratic
from pipeline.rounds.split import HeldOutPicture
from pipeline.train.adapter import set_strength
from pipeline.train.ahead import moved
from pipeline.train.conditioning import Conditioning, Spoken
from pipeline.train.counted import gaussian
from pipeline.train.network import load_base
from pipeline.train.objective import noisy, sample_losses, target
from pipeline.train.plan import Earlier
from pipeline.train.precision import autocast, judging_precision, mixed_precision, storage_of
from pipeline.train.words import open_words

Item = tuple[HeldOutPicture, int]
"""A picture and which of its timesteps."""
Losses = NDArray[np.float64]
"""(pictures, timesteps), in the manifest's order."""

BATCH = 16
"""Samples in one forward pass; the mean does not depend on it but for the last bits."""


@dataclass(frozen=True)
class _Batch:
    items: tuple[Item, ...]
    noisy: Tensor
    """(B, C, H, W)"""
    timesteps: Tensor
    told: Conditioning | Spoken
    wanted: Tensor
    """(B, C, H, W): what the network should say."""


class HeldOut:
    """One checkpoint with LoRAs attached, ready to be judged at any strengths.

    The mean of each picture's latent is used, the caption is never dropped, and losses are
    accumulated in float32: what is left to vary is the strengths.
    """

    def __init__(
        self,
        recipe: BuildRecipe,
        checkpoint: Path | None,
        loras: Sequence[Path],
        beside: Sequence[Earlier] = (),
        *,
        live: bool = False,
    ) -> None:
        """`loras` are judged, on top of `checkpoint` (None: the origin) with `beside` beside it.

        `live`: captions go through the text encoders at each strength; else what those of the
        origin gave is cached.
        """
        self._device = PartialState().device
        self._scheduler = load_scheduler(recipe.base)
        self._scaling = latent_scaling(recipe.base)
        trained = mixed_precision(recipe.train.precision)
        storage, self._mixed = storage_of(recipe.train, trained), judging_precision(trained)
        self._names = [f"lora_{number}" for number in range(len(loras))]
        judged = [Earlier(name, lora, 1.0) for name, lora in zip(self._names, loras, strict=True)]
        network = load_base(
            recipe.base, checkpoint, (*beside, *judged), storage, self._mixed, live=live
        )
        self._network = network.to(self._device).eval()

    def _set(self, strengths: Sequence[Strength]) -> None:
        for name, strength in zip(self._names, strengths, strict=True):
            set_strength(self._network, strength, name)

    @torch.no_grad()
    def losses(
        self,
        cached: CacheFolders,
        pictures: Sequence[HeldOutPicture],
        strengths: Sequence[Strength],
    ) -> Losses:
        """The loss of each of `pictures` at each of its timesteps."""
        self._set(strengths)
        row = {picture.md5: number for number, picture in enumerate(pictures)}
        found = np.zeros((len(pictures), len(pictures[0].timesteps)))
        for batch in self._batches(cached, pictures):
            losses = sample_losses(self._predicted(batch), batch.wanted).tolist()
            for (picture, part), loss in zip(batch.items, losses, strict=True):
                found[row[picture.md5], part] = loss
        return found

    @torch.no_grad()
    def around(
        self,
        cached: CacheFolders,
        pictures: Sequence[HeldOutPicture],
        strengths: Sequence[float],
        steps: Sequence[float],
        at: Callable[[Sequence[float]], Sequence[Strength]] = tuple,
    ) -> Quadratic:
        """The mean loss of `pictures` around `strengths`, as `refit` asks for it.

        `at` makes the LoRAs' own strengths of those that are fitted; linear.
        """
        total: Quadratic | None = None
        for batch in self._batches(cached, pictures):
            self._set(at(strengths))
            centre = self._residuals(batch)
            beside = []
            for index, step in enumerate(steps):
                shifted = list(strengths)
                shifted[index] += step
                self._set(at(shifted))
                beside.append(self._residuals(batch))
            part = quadratic(centre, beside, steps)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _predicted(self, batch: _Batch) -> Tensor:
        with autocast(self._device, self._mixed):
            said: Tensor = self._network(batch.noisy, batch.timesteps, batch.told)
        return said

    def _residuals(self, batch: _Batch) -> NDArray[np.float64]:
        """Divided by the root of a sample's size: larger pictures count as much as small ones."""
        off = (self._predicted(batch).float() - batch.wanted.float()).flatten(1)
        weighed = off.double() / off.shape[1] ** 0.5
        made: NDArray[np.float64] = weighed.flatten().cpu().numpy()
        return made

    def _batches(
        self, cached: CacheFolders, pictures: Sequence[HeldOutPicture]
    ) -> Iterator[_Batch]:
        """Every (picture, timestep), in batches of one bucket each."""
        text = self._network.text
        latents = open_latents(cached.latents)
        words = open_words(cached.text if text is None else cached.captions, text)
        rows = {picture.md5: latents.record(picture.md5) for picture in pictures}
        sizes = {md5: (row.width, row.height) for md5, row in rows.items()}
        for bucket in sorted({sizes[picture.md5] for picture in pictures}):
            items = [
                (picture, part)
                for picture in pictures
                if sizes[picture.md5] == bucket
                for part in range(len(picture.timesteps))
            ]
            for start in range(0, len(items), BATCH):
                group = items[start : start + BATCH]
                clean = torch.stack(
                    [latents.latent(p.md5)[0].float() * self._scaling for p, _ in group]
                )
                told = words.told([(p.md5, 0) for p, _ in group], [rows[p.md5] for p, _ in group])
                noise = torch.stack(
                    [gaussian(tuple(clean.shape[1:]), p.noise_seeds[i]) for p, i in group]
                )
                timesteps = torch.tensor([p.timesteps[i] for p, i in group])
                clean, noise, timesteps = (x.to(self._device) for x in (clean, noise, timesteps))
                yield _Batch(
                    tuple(group),
                    noisy(self._scheduler, clean, noise, timesteps),
                    timesteps,
                    moved(told, self._device),
                    target(self._scheduler, clean, noise, timesteps),
                )
