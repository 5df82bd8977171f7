"""How quickly files are fetched, beside the least that could do the same: by hand

    python benchmarks/download.py --quick --json result.json

A server in a process of its own gives pictures from memory over loopback, politeness off. Against
it run, in turn and each in a process of its own: the downloader (part files, md5, header, fsync,
rename, a row in SQLite) and a bare aiohttp loop with as many connections that streams to disk and
hashes; its time ends, as ours does, when the bytes are on the disk: one syncfs after the last file,
which is the least that can do it (*_ratio_unflushed leaves that out). What was fetched is removed
at the end alone, 9 GB in full: where thousands of files have just been removed, ext4 looks past
each of them whenever a file is made. What is timed is the
fetching of the files, not the reading of the posts before it nor the decoding after it. With
--gallery-dl PATH that program gets the same pictures too, in turn, from its start to its end: as it
is, when it neither hashes nor flushes (*_ratio_gallery_dl), and with its own md5 of each file
(*_ratio_gallery_dl_md5), which is nearer to the same work.

--json names: big_ratio_bare and small_ratio_bare (the bare loop's seconds over ours, at 2.9 MB and
at 100 KB a file; the median of the pairs), rss_mb (our peak, MB).
"""

import argparse
import asyncio
import ctypes
import hashlib
import io
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A script's own folder comes first, and files there are called what rooms are.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))

import aiohttp
from aiohttp import web
from PIL import Image

BIG, SMALL = 2_900_000, 100_000
"""Bytes of a file."""
CHUNK = 256 * 1024
READ_BUFFER = 1024 * 1024
PER_PAGE = 200


@dataclass(frozen=True)
class Load:
    """What is fetched."""

    bytes: int
    files: int
    connections: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer files, about half a minute")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each, in turn")
    parser.add_argument("--gallery-dl", type=Path, help="the program, to be run beside")
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary one")
    parser.add_argument("--serve", nargs=2, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        asyncio.run(serve(*asked.serve))
    elif asked.run:
        print(json.dumps(run_one(asked.run[0], asked.run[1], asked.connections, asked.folder)))
    else:
        figures = compare(asked)
        print(json.dumps(figures, indent=2))
        if asked.json:
            asked.json.write_text(json.dumps(figures, indent=2) + "\n")


def compare(asked: argparse.Namespace) -> dict[str, float]:
    """All runs; returns the figures."""
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        asked.folder = Path(folder)
        return compare_in(asked)


def compare_in(asked: argparse.Namespace) -> dict[str, float]:
    """All runs in `asked.folder`."""
    figures: dict[str, float] = {"connections": asked.connections}
    peaks = []
    for name, size, files in (
        ("big", BIG, 60 if asked.quick else 200),
        ("small", SMALL, 600 if asked.quick else 3000),
    ):
        others = ("gallery_dl", "gallery_dl_md5") if asked.gallery_dl else ()
        ratios: dict[str, list[float]] = {which: [] for which in ("bare", "unflushed", *others)}
        seconds = []
        with serving(size, files) as url:
            for _ in range(asked.pairs):
                ours = run_apart("ours", url, asked)
                bare = run_apart("bare", url, asked)
                assert ours["files"] == bare["files"] == files
                seconds.append(ours["seconds"])
                ratios["bare"].append(bare["seconds"] / ours["seconds"])
                ratios["unflushed"].append(bare["streamed"] / ours["seconds"])
                for which in others:
                    took = gallery_dl(asked, url, files, which.endswith("md5"))
                    ratios[which].append(took / ours["seconds"])
                peaks.append(ours["rss_mb"])
        best = statistics.median(seconds)
        figures |= {f"{name}_ratio_{of}": round(statistics.median(ratios[of]), 3) for of in ratios}
        figures[f"{name}_per_second"] = round(files / best, 1)
        figures[f"{name}_mib_per_second"] = round(files * size / best / 2**20, 1)
    figures["rss_mb"] = round(max(peaks), 1)
    return figures


def run_apart(which: str, url: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--run", which, url]
    command += ["--connections", str(asked.connections)]
    command += ["--folder", str(asked.folder)]
    os.sync()  # What others wrote and did not flush would be on its way to the disk meanwhile.
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


def run_one(which: str, url: str, connections: int, place: Path) -> dict[str, Any]:
    """Fetches everything once; seconds, files, and this process's peak in MB."""
    folder = Path(tempfile.mkdtemp(dir=place))
    if which == "ours":
        os.environ["XDG_RUNTIME_DIR"] = str(folder)
        files, seconds = ours(folder, url, connections)
        streamed = seconds
    else:
        files, seconds, streamed = asyncio.run(bare(folder, url, connections))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"files": files, "seconds": seconds, "streamed": streamed, "rss_mb": peak}


def ours(folder: Path, url: str, connections: int) -> tuple[int, float]:
    """The downloader's own way, from wanted files to rows."""
    from pipeline.artefacts.workspace import Workspace
    from pipeline.download.booru import visiting
    from pipeline.download.patience import Patience
    from pipeline.progress import Silent
    from pipeline.recipe.dataset import DatasetRecipe

    recipe = DatasetRecipe.model_validate(
        {
            "name": "bench",
            "download": {
                "site": "danbooru",
                "tags": "any",
                "host": url,
                "requests_per_second": 1_000_000,
                "connections": connections,
            },
        }
    )
    place = Workspace(folder).dataset("bench")
    with visiting(recipe, place, Silent(), Patience()) as visit:
        choice, todo = visit.choose(visit.read())
        began = time.perf_counter()
        with Silent().bar("", todo.files, "") as bar:
            visit.originals.settle(choice.wanted(), todo, bar)
        took = time.perf_counter() - began
    return sum(1 for path in place.originals.rglob("*") if path.is_file()), took


async def bare(folder: Path, url: str, connections: int) -> tuple[int, float, float]:
    """The least: streams to disk, md5, as many connections. Seconds with and without the flush."""
    async with aiohttp.ClientSession() as session:
        posts: list[dict[str, Any]] = []
        cursor = ""
        while True:
            async with session.get(f"{url}/posts.json{cursor}") as response:
                page = await response.json()
            if not page:
                break
            posts += page
            cursor = f"?page=b{page[-1]['id']}"
    queue = iter(posts)
    count = 0
    began = time.perf_counter()
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=READ_BUFFER) as session:

        async def work() -> None:
            nonlocal count
            for post in queue:
                md5 = hashlib.md5(usedforsecurity=False)
                async with session.get(post["file_url"]) as response:
                    with open(folder / post["md5"], "wb", buffering=0) as handle:
                        async for chunk in response.content.iter_chunked(CHUNK):
                            md5.update(chunk)
                            handle.write(chunk)
                count += md5.hexdigest() == post["md5"]

        await asyncio.gather(*(work() for _ in range(connections)))
    streamed = time.perf_counter() - began
    flush(folder)
    return count, time.perf_counter() - began, streamed


def flush(folder: Path) -> None:
    """What was written is on the disk, and not on its way there: as it is after each of ours."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        os.close(descriptor)


def gallery_dl(asked: argparse.Namespace, url: str, files: int, hashing: bool) -> float:
    """Its seconds for the same pictures, its pauses turned off."""
    settings: dict[str, Any] = {"bench": {"root": url}, "sleep-request": 0, "ugoira": False}
    if hashing:
        settings["postprocessors"] = [{"name": "hash", "hash": "md5"}]
    folder = Path(tempfile.mkdtemp(dir=asked.folder))
    config = folder / "config.json"
    config.write_text(json.dumps({"extractor": {"Danbooru": settings}}))
    command = [str(asked.gallery_dl), "--config-ignore", "-c", str(config), "-q"]
    command += ["-D", f"{folder}/out", f"{url}/posts?tags=any"]
    os.sync()
    began = time.perf_counter()
    subprocess.run(command, check=True)
    took = time.perf_counter() - began
    found = len(list((folder / "out").iterdir()))
    if found != files:
        raise SystemExit(f"gallery-dl fetched {found} of {files} files")
    return took


@contextmanager
def serving(size: int, files: int) -> Iterator[str]:
    """A server of so many files in a process of its own."""
    command = [sys.executable, __file__, "--serve", str(size), str(files)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip()
    finally:
        process.terminate()
        process.wait()


async def serve(size: int, files: int) -> None:
    """Posts as Danbooru lists them, and their files."""
    heads, tail = pictures(size, files)
    digests = [hashlib.md5(head + tail, usedforsecurity=False).hexdigest() for head in heads]
    length = len(heads[0]) + len(tail)
    numbers = {md5: number for number, md5 in enumerate(digests)}
    url = ""

    async def page(request: web.Request) -> web.Response:
        cursor = int(request.query.get("page", "b1000000")[1:])
        ids = range(min(files, cursor - 1), max(0, min(files, cursor - 1) - PER_PAGE), -1)
        return web.json_response([post(number, digests[number - 1], length, url) for number in ids])

    async def count(request: web.Request) -> web.Response:
        return web.json_response({"counts": {"posts": files}})

    async def file(request: web.Request) -> web.Response:
        number = numbers[request.match_info["name"].partition(".")[0]]
        return web.Response(body=heads[number] + tail, content_type="image/png")

    application = web.Application()
    application.add_routes(
        [
            web.get("/posts.json", page),
            web.get("/counts/posts.json", count),
            web.get("/original/{ab}/{cd}/{name}", file),
        ]
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    print(url, flush=True)
    await asyncio.Event().wait()


def pictures(size: int, files: int) -> tuple[list[bytes], bytes]:
    """PNGs of about `size` bytes: noise, and before it a line of text that is each one's own."""
    side = round(math.sqrt(size / 3))
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(side * side * 3)).save(buffer, "PNG")
    whole = buffer.getvalue()
    heads = []
    for number in range(files):
        text = b"tEXtnumber\x00" + str(number).zfill(8).encode()
        chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
        heads.append(whole[:33] + chunk)
    return heads, whole[33:]


def post(number: int, md5: str, size: int, url: str) -> dict[str, Any]:
    """A post in Danbooru's words."""
    address = f"{url}/original/{md5[:2]}/{md5[2:4]}/{md5}.png"
    tags = {"general": "any", "artist": "a", "copyright": "", "character": "", "meta": ""}
    return {
        "id": number,
        "md5": md5,
        "file_ext": "png",
        "file_size": size,
        "image_width": 64,
        "image_height": 64,
        "rating": "g",
        "score": 1,
        "created_at": "2025-01-01T00:00:00.000-05:00",
        "file_url": address,
        "large_file_url": address,
        "tag_string": "any a",
    } | {f"tag_string_{category}": names for category, names in tags.items()}


if __name__ == "__main__":
    main()
