"""Decoding and scaling large pictures, beside plain Pillow in the same run.

    python benchmarks/resize.py [--quick] [--json FILE] [--work DIR]

Over generated pictures of 2000x2800, to the default ladder:

jpeg_ratio_pillow, png_ratio_pillow  pictures per CPU second, ours over Pillow's whole decoding,
                                     Lanczos and crop; of a PNG nearly all of ours is the
                                     library's inflating and unfiltering
jpeg_psnr_db       ours to a Lanczos in floats of the full decoding, dB, the lowest
overhead           share of CPU time that our code adds to the bare calls of vips
two_process_ratio  pictures a second of the stage's shards in two processes over one; says little
                   on a machine that has other work

--quick takes a few pictures.
"""

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# A script's own folder comes first, and files there are called what rooms are.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))

import numpy as np
import pyvips
from PIL import Image, ImageFilter

from pipeline.artefacts.executor import Processes
from pipeline.pictures.placement import Placement
from pipeline.pictures.read import read_fitted, vips_engine
from pipeline.recipe.resize import Resize
from pipeline.resize.ladder import ladders, plan_for
from pipeline.resize.shards import Original, ShardTask, make_shard
from pipeline.size import Size

SIZE = Size(2000, 2800)
LADDERS = ladders(Resize())


def picture(seed: int) -> Image.Image:
    """Soft noise on several scales with hard edges: compresses about as a drawing does."""
    draw = np.random.default_rng(seed)
    layers = np.zeros((SIZE.height, SIZE.width, 3))
    for cells in (6, 40, 300):
        noise = draw.integers(0, 256, (cells * 7 // 5, cells, 3), dtype=np.uint8)
        layers += np.asarray(Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC))
    layers = layers / 3
    for _ in range(40):
        x, y = draw.integers(0, SIZE.width - 300), draw.integers(0, SIZE.height - 300)
        layers[y : y + draw.integers(9, 300), x : x + draw.integers(9, 300)] = draw.integers(
            0, 256, 3
        )
    return Image.fromarray(layers.astype(np.uint8)).filter(ImageFilter.SMOOTH)


def placement() -> Placement:
    """Where a picture of SIZE comes to lie."""
    found = LADDERS[0].placement(SIZE)
    assert found is not None
    return found


def plain(path: Path) -> Image.Image:
    """Pillow alone, as one would write it: everything decoded, all of it scaled, the middle cut."""
    place = placement()
    with Image.open(path) as opened:
        scaled = opened.convert("RGB").resize(place.scaled, Image.Resampling.LANCZOS)
    left, top = place.left, place.top
    return scaled.crop((left, top, left + place.bucket.width, top + place.bucket.height))


def bare(path: Path) -> bytes:
    """vips alone: the same decoding and scaling, without looking at what the file is."""
    place = placement()
    content = path.read_bytes()
    load = pyvips.Image.jpegload_buffer if path.suffix == ".jpg" else pyvips.Image.pngload_buffer
    image = load(content, access="sequential", fail_on="error")
    image = image.resize(
        place.scaled.width / image.width,
        vscale=place.scaled.height / image.height,
        kernel="lanczos3",
    )
    pixels: bytes = image.write_to_memory()
    return pixels


def ours(path: Path) -> Image.Image:
    """What the stage does with a picture, up to its pixels."""
    (one,) = read_fitted(path, plan_for(LADDERS, ""), engine=vips_engine())
    assert one.engine == "vips"
    return one.image


def cpu(work: Callable[[Path], object], path: Path) -> float:
    """CPU seconds of this process, all its threads."""
    started = time.process_time()
    work(path)
    return time.process_time() - started


def psnr(path: Path) -> float:
    """Decibels of ours to a Lanczos in floats."""
    place = placement()
    with Image.open(path) as opened:
        levels = np.asarray(opened.convert("RGB")).astype(np.float32)
    scaled = np.stack(
        [
            np.asarray(
                Image.fromarray(np.ascontiguousarray(levels[..., channel])).resize(
                    place.scaled, Image.Resampling.LANCZOS
                )
            )
            for channel in range(3)
        ],
        axis=-1,
    ).clip(0, 255)
    left, top = place.left, place.top
    wanted = scaled[top : top + place.bucket.height, left : left + place.bucket.width]
    error = float(np.mean((np.asarray(ours(path)) - wanted) ** 2))
    return float(10 * np.log10(255**2 / error))


def spread(paths: list[Path], folder: Path, processes: int, rounds: int) -> float:
    """Pictures a second of the stage's shards in so many processes, their start not counted."""
    originals = [
        Original(f"{n:032x}", str(paths[n % len(paths)])) for n in range(rounds * len(paths))
    ]
    size = 2
    tasks = [
        ShardTask(
            folder / f"{processes}" / f"{start:05d}",
            "x",
            folder,
            tuple(originals[start : start + size]),
            LADDERS,
            "webp",
        )
        for start in range(0, len(originals), size)
    ]
    ends: list[float] = []

    def advance(count: int) -> None:
        ends.extend([time.monotonic()] * count)

    started = time.monotonic()
    Processes(processes).run(make_shard, tasks, advance)
    if processes == 1:
        return len(ends) / (ends[-1] - started)
    # The first shards to come in end the time in which the processes started.
    warm = processes * size
    return (len(ends) - warm) / (ends[-1] - ends[warm - 1])


def main() -> None:
    """Measures, prints, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few pictures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the pictures are made")
    asked = parser.parse_args()
    count = 2 if asked.quick else 8
    engine = vips_engine()
    assert engine is not None, "pyvips is not installed"
    engine.prepare(threads=1)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=asked.work) as made:
        folder = Path(made)
        paths: dict[str, list[Path]] = {"jpeg": [], "png": []}
        for number in range(count):
            image = picture(number)
            for kind, suffix, options in (
                ("jpeg", "jpg", {"quality": 92}),
                ("png", "png", {"compress_level": 6}),
            ):
                path = folder / f"{number}.{suffix}"
                with io.BytesIO() as buffer:
                    image.save(buffer, kind.upper(), **options)
                    path.write_bytes(buffer.getvalue())
                paths[kind].append(path)
        overheads = []
        for kind in ("jpeg", "png"):
            for work in (ours, plain, bare):  # Libraries load, and memory is taken, at first use.
                work(paths[kind][0])
            spent = {work: [cpu(work, p) for p in paths[kind]] for work in (ours, plain, bare)}
            mine, theirs, least = (statistics.median(spent[w]) for w in (ours, plain, bare))
            figures[f"{kind}_ratio_pillow"] = theirs / mine
            figures[f"{kind}_ms"] = 1000 * mine
            overheads.append(mine / least - 1)
        figures["jpeg_psnr_db"] = min(psnr(path) for path in paths["jpeg"])
        figures["overhead"] = max(overheads)
        rounds = 6 if asked.quick else 12
        one, two = (spread(paths["jpeg"], folder, n, rounds) for n in (1, 2))
        figures["two_process_ratio"] = two / one
    sys.stdout.writelines(f"{name:20} {value:.4g}\n" for name, value in figures.items())
    if asked.json is not None:
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
