"""Pictures of one bucket into their posterior under the VAE: mean and log-variance, unscaled."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from pipeline.artefacts.executor import Advance, cores
from pipeline.artefacts.records import Failure
from pipeline.cache.encoded import Encoded
from pipeline.cache.pictures import Pictures, read_pixels
from pipeline.cache.plan import UNMASKED, Look, Shard
from pipeline.models.fitting import quiet
from pipeline.models.shards import MASK

READERS = 2
"""Threads that read stored pictures ahead; decoders let go of Python's lock. Originals, twenty
times larger, get one for each core."""
AHEAD = 3
"""Batches read ahead at least: memory, for the case that one takes longer to read than to encode.
"""


class Batch(NamedTuple):
    """Pictures read together."""

    places: tuple[int, ...]
    """In the shard, of what could be read."""
    pixels: Tensor | None
    """(B, 3, H, W) float32; None where nothing could."""
    masks: tuple[np.ndarray | None, ...]
    """As Shown.mask."""
    engines: tuple[str, ...]
    """What decoded each original; "" for stored pictures."""
    failures: tuple[Failure, ...]


class LatentEncoder:
    """Encodes shards of `pictures`, `batch_size` at a time, on `device`.

    The next batches are read while one is encoded.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        pictures: Pictures,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        compiled: bool = False,
    ) -> None:
        self._vae = vae.to(device)
        if dtype != torch.float32:
            with quiet():  # diffusers warns of layers to keep in float32, of which there are none.
                self._vae.to(dtype)
        if device.type == "cuda":
            self._vae.to(memory_format=torch.channels_last)
        if compiled:
            self._vae.encoder = torch.compile(self._vae.encoder)
        self._pictures = pictures
        self._readers = READERS if pictures.kept else max(READERS, cores())
        self._batch_size = batch_size
        self._device = device
        self._dtype = dtype

    def __call__(self, shard: Shard[Look], advance: Advance) -> Encoded:
        """The shard's tensors "mean" and "logvar", (N, 4, h, w) float16, good rows only; of
        masked pictures also MASK, (N, h, w) uint8: 255 where all of a latent pixel's count."""
        rows: list[int] = []
        failures: list[Failure] = []
        # Made when the first batch says how large: a shard is held once, not in parts and whole.
        means, logvars, masks = torch.empty(0), torch.empty(0), []
        engines: Counter[str] = Counter()
        for places, pixels, opaque, decoders, unread in self._batches(shard.items):
            failures += unread
            engines.update(f"decoded_by_{name}" for name in decoders if name)
            if pixels is not None:
                posterior = encode(self._vae, self._moved(pixels)).cpu()
                if not len(means):
                    shape = (len(shard.items), posterior.shape[1] // 2, *posterior.shape[2:])
                    means = torch.empty(shape, dtype=torch.float16)
                    logvars = torch.empty(shape, dtype=torch.float16)
                # After the cast: what float16 cannot hold is no latent either.
                finite = posterior.isfinite().flatten(1).all(1)
                kept = slice(len(rows), len(rows) + int(finite.sum()))
                means[kept], logvars[kept] = posterior[finite].chunk(2, dim=1)
                for place, good, mask in zip(places, finite.tolist(), opaque, strict=True):
                    if good:
                        rows.append(place)
                        if kind := self._pictures.masks:
                            masks.append(of_latent(mask, posterior.shape[2], posterior.shape[3]))
                            engines[UNMASKED[kind]] += mask is None
                    else:
                        reason = "the VAE gives NaN or infinity for it"
                        failures.append(Failure(md5=shard.items[place].md5, reason=reason))
            advance(len(places) + len(unread))
        tensors = {"mean": means[: len(rows)], "logvar": logvars[: len(rows)]}
        if masks:
            tensors[MASK] = torch.stack(masks)
        return Encoded(tensors, tuple(rows), tuple(failures), dict(sorted(engines.items())))

    def _moved(self, pixels: Tensor) -> Tensor:
        if self._device.type != "cuda":
            return pixels.to(self._dtype)
        pinned = pixels.pin_memory()
        return pinned.to(
            self._device, self._dtype, non_blocking=True, memory_format=torch.channels_last
        )

    def _batches(self, items: Sequence[Look]) -> Iterator[Batch]:
        """In order, read ahead by AHEAD batches, or one for each reader where those are more."""
        starts = range(0, len(items), self._batch_size)
        with ThreadPoolExecutor(self._readers) as pool:
            pending: deque[Future[Batch]] = deque()
            try:
                for start in starts:
                    pending.append(pool.submit(self._read, items, start))
                    if len(pending) > max(AHEAD, self._readers):
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _read(self, items: Sequence[Look], start: int) -> Batch:
        places, pictures, masks, engines, failures = [], [], [], [], []
        for place in range(start, min(start + self._batch_size, len(items))):
            shown = read_pixels(self._pictures, items[place])
            if isinstance(shown, Failure):
                failures.append(shown)
            else:
                places.append(place)
                pictures.append(shown.pixels)
                masks.append(shown.mask)
                engines.append(shown.engine)
        pixels = to_tensor(pictures) if pictures else None
        return Batch(tuple(places), pixels, tuple(masks), tuple(engines), tuple(failures))


def to_tensor(pictures: Sequence[np.ndarray]) -> Tensor:
    """(H, W, 3) uint8 each → (B, 3, H, W) float32 in [-1, 1], as the VAE was trained."""
    stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1.0


def of_latent(mask: np.ndarray | None, height: int, width: int) -> Tensor:
    """(H, W) uint8 in pixels → (h, w) uint8 in latent pixels, the mean of what each covers.

    That is `interpolate(mode="area")`, as in kohya's `library/custom_train_functions.py`,
    `apply_masked_loss`. None, a picture without a mask, counts everywhere.
    """
    if mask is None:
        return torch.full((height, width), 255, dtype=torch.uint8)
    pixels = torch.from_numpy(mask.copy()).float()[None]
    return adaptive_avg_pool2d(pixels, (height, width))[0].round().to(torch.uint8)


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) → (B, 8, h, w) float16: mean, then log-variance, along the channels."""
    posterior = vae.encode(pixels).latent_dist
    return torch.cat([posterior.mean, posterior.logvar], dim=1).half()
