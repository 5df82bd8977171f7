"""What the network is shown at each step: latents, noise, timesteps and conditioning.

Everything drawn is a function of (seed, round, epoch, image, step); see `counted`.
"""

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from pipeline.artefacts.records import LatentRecord
from pipeline.errors import RequestError
from pipeline.models.places import EMPTY_CAPTION
from pipeline.models.scaling import latent_scaling
from pipeline.models.shards import open_latents
from pipeline.models.text import TextStack
from pipeline.recipe import BuildRecipe
from pipeline.train.conditioning import Conditioning, Spoken
from pipeline.train.counted import gaussian, uniform
from pipeline.train.noise import Key, drawn_noise, shown_noise
from pipeline.train.objective import posterior_sample, stratified_timesteps
from pipeline.train.order import Order, Pool, keyed
from pipeline.train.plan import RoundTraining
from pipeline.train.words import open_words


@dataclass(frozen=True)
class Inputs:
    """One batch."""

    latents: Tensor
    """(B, C, H, W) float32, scaled."""
    noise: Tensor
    """(B, C, H, W) float32: what the target is made of."""
    shown: Tensor
    """(B, C, H, W) float32: what the latents are mixed with; `noise`, unless inputs are
    perturbed."""
    timesteps: Tensor
    """(B,) int64."""
    told: Conditioning | Spoken
    weights: Tensor
    """(B,) float32: what each sample's loss counts."""
    masks: Tensor | None
    """(B, 1, H, W) float32: what each latent pixel counts; None where all count alike."""


class Feed:
    """The batches of one round, by step.

    Args:
        text: the encoders that captions are for; None: texts are cached.

    Raises:
        RequestError: no pictures are left to train on.
    """

    def __init__(
        self,
        recipe: BuildRecipe,
        training: RoundTraining,
        timesteps: int,
        text: TextStack | None = None,
    ) -> None:
        self._train, self._training, self._total = recipe.train, training, timesteps
        self._sources = training.sources
        self._latents = [open_latents(source.latents) for source in self._sources]
        self._texts = [open_words(source.texts, text) for source in self._sources]
        pools = []
        for source, store in zip(self._sources, self._latents, strict=True):
            wanted = set(source.pictures)
            pools.append(Pool([r for r in store.records if r.md5 in wanted], source.repeats))
        if not pools[0].records:
            raise RequestError("There are no pictures to train on: all failed or are held out.")
        self._order = Order(pools, recipe.train.batch_size, training.seed, training.round)
        self._scaling = latent_scaling(recipe.base)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in which every picture is seen as often as its source repeats it."""
        return self._order.steps_per_epoch

    def size_at(self, step: int) -> int:
        """Samples in the batch of `step`."""
        return len(self._order.at(step).md5s)

    def at(self, step: int) -> Inputs:
        """The batch of `step`, counted from 0 over the whole round, on the CPU."""
        job, batch = self._training, self._order.at(step)
        store, words = self._latents[batch.source], self._texts[batch.source]
        pictures: list[LatentRecord] = []
        latents, texts, noises, shown, masks = [], [], [], [], []
        for md5, copy in batch.pictures:
            seen: Key = (job.seed, job.round, batch.epoch, md5)
            key: Key = (*seen, step, *keyed(copy))
            look = int(uniform(*seen, *keyed(copy), "look") * store.variants(md5))
            pictures.append(store.record(md5, look, batch.bucket))
            mean, logvar = store.latent(md5, look, batch.bucket)
            if self._train.masked_loss:
                mask = store.mask(md5, look, batch.bucket)
                masks.append(mask.clamp(min=self._train.unmasked_weight)[None])
            shape = tuple(mean.shape)
            drawn = gaussian(shape, *key, "posterior")
            latents.append(posterior_sample(mean.float(), logvar.float(), drawn, self._scaling))
            dropped = uniform(*key, "dropout") < self._train.caption_dropout
            variant = int(uniform(*seen, *keyed(copy), "text") * words.variants(md5))
            texts.append((EMPTY_CAPTION, 0) if dropped else (md5, variant))
            noises.append(drawn_noise(self._train, shape, key))
            shown.append(shown_noise(self._train, noises[-1], key))
        count = len(pictures)
        return Inputs(
            latents=torch.stack(latents),
            noise=torch.stack(noises),
            shown=torch.stack(shown),
            timesteps=stratified_timesteps(
                torch.arange(count),
                count,
                uniform(job.seed, job.round, step, "timestep"),
                self._total,
            ),
            told=words.told(texts, pictures),
            weights=torch.full((count,), self._sources[batch.source].weight),
            masks=torch.stack(masks) if masks else None,
        )


def require_fit(inputs: Inputs, unet: UNet2DConditionModel, training: RoundTraining) -> None:
    """Refuses shards that were made with another family's networks.

    Args:
        inputs: a batch of them.

    Raises:
        RequestError: `unet` takes other latents, other texts, or none that are pooled.
    """
    takes, told = unet.config, inputs.told
    found = [(training.latents, "channels of latents", inputs.latents.shape[1], takes.in_channels)]
    if isinstance(told, Conditioning):
        pooled, width = told.added is not None, told.hidden.shape[-1]
        found += [
            (training.texts, "features a token", width, takes.cross_attention_dim),
            (training.texts, "pooled texts", pooled, takes.addition_embed_type == "text_time"),
        ]
    for folder, what, has, wanted in found:
        if has != wanted:
            raise RequestError(
                f"The shards in {folder} were made for another base: {what} {has}, where "
                f"this one's UNet takes {wanted}. Run `urushi cache` for this recipe."
            )
