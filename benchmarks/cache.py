"""What caching costs beside the models it feeds, and how it bears many pictures.

    python benchmarks/cache.py [--quick] [--json FILE] [--work DIR]

latents_utilisation  CPU seconds of a bare loop over the same VAE (SD 1.5's shape, random weights)
                     on tensors in memory, over those of a shard of the stage, from pictures on
                     disk to its file; CPU, so that neither overlap nor other work flatters it
text_utilisation     the same of SD 1.5's text encoder
noop_50k_s           seconds to find out that resizing and caching 50,000 pictures is all done
rss_mb_10k, rss_mb_100k  peak memory of caching so many small pictures with the demo's base

Each of the last three is of a process of its own. --quick takes smaller numbers of everything.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A script's own folder comes first, and files there are called what rooms are.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))

import numpy as np
from PIL import Image

from pipeline.artefacts import chain
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.receipts import done, write_receipt
from pipeline.artefacts.records import CaptionRecord, ImageRecord, ResizedRecord, write_records
from pipeline.cache import stage as cache_stage
from pipeline.cache.plan import Look, Shard, Text
from pipeline.models.places import cache_folders
from pipeline.pictures.placement import Placement
from pipeline.progress import Silent
from pipeline.resize import stage as resize_stage
from pipeline.resize.shards import SHARD, shard_fingerprint, shard_folder
from pipeline.size import Size

ROOT = Path(__file__).parents[1]
SIDE = 16
"""Pixels, of the many small pictures: a whole number of the demo's latents."""
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
"""SD 1.5's."""
BUCKET = Size(128, 128)
"""Reading and encoding both go by the pixel: larger pictures give the same ratio, at 3 CPU seconds
each for 256 pixels a side."""


def fastest(*works: Callable[[], object], repeats: int) -> list[float]:
    """The least CPU seconds of each of `works`, taken in turns so that noise is shared."""
    best = [float("inf")] * len(works)
    for _ in range(repeats):
        for number, work in enumerate(works):
            started = time.process_time()
            work()
            best[number] = min(best[number], time.process_time() - started)
    return best


def latents_utilisation(folder: Path, count: int, repeats: int) -> float:
    """See the module."""
    import torch
    from diffusers import AutoencoderKL

    from pipeline.cache.latents import LatentEncoder, encode, to_tensor
    from pipeline.cache.pictures import Pictures

    draw = np.random.default_rng(1)
    looks, pictures = [], []
    for number in range(count):
        small = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize(BUCKET, Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.webp", lossless=True, method=0, quality=0)
        pictures.append(np.asarray(image))
        place = Placement(BUCKET, BUCKET, 0, 0)
        looks.append(Look(f"{number:032x}", 0, False, 0, f"{number}.webp", BUCKET, place))
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE).eval().requires_grad_(False)
    del vae.decoder
    batches = [to_tensor(pictures[start : start + 4]) for start in range(0, count, 4)]
    encoder = LatentEncoder(vae, Pictures(folder, kept=True), 4, torch.device("cpu"))
    shard = Shard("latents-00000.safetensors", tuple(looks))
    encode(vae, batches[0])

    def stage() -> None:
        from safetensors.torch import save_file

        save_file(encoder(shard, lambda count: None).tensors, folder / "out.safetensors")

    bare, ours = fastest(lambda: [encode(vae, batch) for batch in batches], stage, repeats=repeats)
    return bare / ours


def text_utilisation(folder: Path, count: int, repeats: int) -> float:
    """See the module."""
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from pipeline.cache.texts import BATCH, TextEncoder
    from pipeline.models.text import Reader, TextStack

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "demo/base/config/tokenizer")
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        eos_token_id=tokenizer.eos_token_id,
    )
    text = TextStack((Reader(tokenizer, CLIPTextModel(config).eval().requires_grad_(False)),))
    captions = [f"circle, red, {number}, " * 8 for number in range(count)]
    shard = Shard("text-00000.safetensors", tuple(Text(c, 0, c) for c in captions))
    encoder = TextEncoder(text)
    tokens = [text.tokens(captions[start : start + BATCH]) for start in range(0, count, BATCH)]
    with torch.no_grad():
        text.forward(tokens[0][:1])

    @torch.no_grad()
    def bare_loop() -> None:
        for batch in tokens:
            text.forward(batch)

    def stage() -> None:
        save_file(encoder(shard, lambda count: None).tensors, folder / "text.safetensors")

    bare, ours = fastest(bare_loop, stage, repeats=repeats)
    return bare / ours


def prepare(root: Path, count: int) -> Job:
    """A job over `count` pictures, captioned and resized as its receipts say; all look the same."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "none").mkdir(exist_ok=True)
    (root / "set.toml").write_text('name = "set"\n[folder]\npath = "none"\n')
    base = ROOT / "demo/base"
    (root / "build.toml").write_text(
        f'name = "build"\n[base]\ncheckpoint = "{base / "tiny.safetensors"}"\n'
        f'config = "{base / "config"}"\n[dataset]\nrecipe = "set.toml"\n'
        f"[resize]\nresolution = {SIDE}\nstep = 8\nmin_side = {SIDE}\nmax_side = {SIDE}\n"
        "[cache]\nbatch_size = 64\nshard_megabytes = 2\n[rounds]\ncount = 1\nepochs = [1]\n"
    )
    job = load_job(root / "build.toml", root / "workspace")
    dataset = job.datasets[0][1]
    folder = job.dataset_folder(dataset)
    md5s = sorted(hashlib.md5(str(n).encode()).hexdigest() for n in range(count))
    write_records(
        folder.images / chain.IMAGES_FILE,
        (
            ImageRecord(
                md5=md5, path=f"{md5}.webp", width=SIDE, height=SIDE, tags={}, score=None,
                rating="general", source=md5,
            )
            for md5 in md5s
        ),
    )  # fmt: skip
    images = write_receipt(
        folder.images, "download", chain.download_fingerprint(dataset), inputs={},
        outputs=[folder.images / chain.IMAGES_FILE],
        summary={"pictures": fingerprint(md5s=md5s)},
    )  # fmt: skip
    of_captions = chain.caption_fingerprint(dataset, images, job.workspace.identities)
    place = folder.captions(of_captions)
    write_records(
        place / chain.CAPTIONS_FILE,
        (CaptionRecord(md5=md5, caption="red circle", score=None) for md5 in md5s),
    )
    write_receipt(
        place, "caption", of_captions, inputs={}, outputs=[place / chain.CAPTIONS_FILE],
        summary={"captions": count},
    )  # fmt: skip
    _resized(job, images, md5s)
    return job


def _resized(job: Job, images: Any, md5s: list[str]) -> None:
    folder = job.dataset_folder(job.datasets[0][1])
    of_resized = chain.resize_fingerprint(job.recipe.resize, images)
    place = folder.resized(of_resized)
    place.mkdir(parents=True)
    noise = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    rows = []
    for number, start in enumerate(range(0, len(md5s), SHARD)):
        shard = shard_folder(place, number)
        shard.mkdir(parents=True)
        names = [f"{md5}.webp" for md5 in md5s[start : start + SHARD]]
        Image.fromarray(noise).save(shard / names[0], lossless=True, method=0)
        for name in names[1:]:  # Within a shard: file systems limit the names of one file.
            os.link(shard / names[0], shard / name)
        write_receipt(
            shard, "resize shard", shard_fingerprint(of_resized, number), inputs={},
            outputs=[shard / name for name in names],
            summary={"engines": {"vips": len(names)}, "libvips": ""},
        )  # fmt: skip
        rows += [f"shards/{number:05d}/{name}" for name in names]
    write_records(
        place / chain.INDEX_FILE,
        (
            ResizedRecord(
                md5=md5, file=file, width=SIDE, height=SIDE, original_width=SIDE,
                original_height=SIDE, scaled_width=SIDE, scaled_height=SIDE, crop_left=0,
                crop_top=0,
            )
            for md5, file in zip(md5s, rows, strict=True)
        ),
    )  # fmt: skip
    write_receipt(
        place, "resize", of_resized,
        inputs={"shards": -(-len(md5s) // SHARD)}, outputs=[place / chain.INDEX_FILE],
        summary={"pictures": len(md5s), "buckets": {f"{SIDE}x{SIDE}": len(md5s)}},
    )  # fmt: skip


def child(what: str, root: Path) -> dict[str, float]:
    """`what` in a process of its own over the job under `root`."""
    shown = subprocess.run(
        [sys.executable, __file__, "--child", what, "--work", root],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if shown.returncode:
        raise SystemExit(shown.stderr)
    found: dict[str, float] = json.loads(shown.stdout.splitlines()[-1])
    return found


def be_child(what: str, root: Path) -> None:
    """What `child` started: caches everything, or finds that it is done."""
    started = time.monotonic()
    job = load_job(root / "build.toml", root / "workspace")
    if what == "noop":
        assert resize_stage.run(job, Silent()).already
        assert cache_stage.run(job, Silent()).already
    else:
        cache_stage.run(job, Silent())
        places = cache_folders(job, job.datasets[0][1])
        assert done(places.latents, places.latents_fingerprint) is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": time.monotonic() - started, "rss_mb": peak}))


def main() -> None:
    """Measures, prints, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller numbers of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where everything is made")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        be_child(asked.child, asked.work)
        return
    few, middle, many = (200, 500, 1_000) if asked.quick else (10_000, 50_000, 100_000)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=asked.work) as made:
        folder = Path(made)
        count, repeats = (8, 1) if asked.quick else (16, 3)
        figures["latents_utilisation"] = latents_utilisation(folder, count, repeats)
        figures["text_utilisation"] = text_utilisation(folder, 4 * count, repeats)
        for name, pictures in (("10k", few), ("50k", middle), ("100k", many)):
            root = folder / name
            prepare(root, pictures)
            figures[f"rss_mb_{name}"] = child("make", root)["rss_mb"]
            if name == "50k":
                figures["noop_50k_s"] = child("noop", root)["seconds"]
    sys.stdout.writelines(f"{name:20} {value:.4g}\n" for name, value in figures.items())
    if asked.json is not None:
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
