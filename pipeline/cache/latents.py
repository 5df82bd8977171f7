"""Pictures of one bucket into their posterior under the VAE: mean and log-variance, unscaled."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save
from torch import Tensor

from pipeline.artefacts.records import Failure, ResizedRecord
from pipeline.cache.pictures import read_pixels
from pipeline.cache.plan import Shard
from pipeline.cache.shards import Encoded
from pipeline.progress import Bar


class LatentEncoder:
    """Encodes shards of pictures under `folder`, `batch_size` at a time, in float32 on `device`."""

    def __init__(
        self, vae: AutoencoderKL, folder: Path, batch_size: int, device: torch.device
    ) -> None:
        self._vae = vae.to(device)
        self._folder = folder
        self._batch_size = batch_size
        self._device = device

    def __call__(self, shard: Shard[ResizedRecord], bar: Bar) -> Encoded:
        """The shard's tensors "mean" and "logvar", (N, 4, h, w) float16, good rows only."""
        rows: list[str] = []
        failures: list[Failure] = []
        parts: list[Tensor] = []
        for start in range(0, len(shard.items), self._batch_size):
            batch = shard.items[start : start + self._batch_size]
            readable, pixels = self._read(batch, failures)
            if readable:
                posterior = encode(self._vae, to_tensor(pixels).to(self._device)).cpu()
                # After the cast: what float16 cannot hold is no latent either.
                finite = posterior.isfinite().flatten(1).all(1)
                parts.append(posterior[finite])
                for md5, good in zip(readable, finite.tolist(), strict=True):
                    if good:
                        rows.append(md5)
                    else:
                        reason = "the VAE gives NaN or infinity for it"
                        failures.append(Failure(md5=md5, reason=reason))
            bar.advance(len(batch))
        if not rows:
            return Encoded(b"", (), tuple(failures), {})
        mean, logvar = torch.cat(parts).chunk(2, dim=1)
        content = save({"mean": mean.contiguous(), "logvar": logvar.contiguous()})
        return Encoded(content, tuple(rows), tuple(failures), {})

    def _read(
        self, batch: Sequence[ResizedRecord], failures: list[Failure]
    ) -> tuple[list[str], list[np.ndarray]]:
        md5s, pictures = [], []
        for record in batch:
            pixels = read_pixels(self._folder, record)
            if isinstance(pixels, Failure):
                failures.append(pixels)
            else:
                md5s.append(record.md5)
                pictures.append(pixels)
        return md5s, pictures


def to_tensor(pictures: Sequence[np.ndarray]) -> Tensor:
    """(H, W, 3) uint8 each → (B, 3, H, W) float32 in [-1, 1], as the VAE was trained."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1.0


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, 8, h, w) float16: mean, then log-variance, along the channels."""
    posterior = vae.encode(pixels).latent_dist
    return torch.cat([posterior.mean, posterior.logvar], dim=1).half()
