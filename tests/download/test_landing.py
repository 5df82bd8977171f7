"""Parts that land together: each has its own end, whatever becomes of the others."""

import asyncio
import hashlib
import io
import threading
from pathlib import Path

import pytest
from PIL import Image

from pipeline.artefacts.workspace import DatasetFolder
from pipeline.download import landing
from pipeline.download.header import Unusable
from pipeline.download.landing import Landing
from pipeline.download.parts import WORTH_RESUMING, Part, part_of
from pipeline.download.placing import Landed, Placing
from pipeline.download.quarantine import NotPromised, Promise, StableMismatch


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 5), shade).save(buffer, "PNG")
    return buffer.getvalue()


def md5_of(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def came(folder: DatasetFolder, content: bytes, md5: str) -> Part:
    part = part_of(folder, md5)
    part.restart(None, len(content))
    part.write(content)
    return part


def land(folder: DatasetFolder, contents: dict[str, bytes]) -> list[Landed | BaseException]:
    """The ends of what came under those md5s, all at a time."""

    async def all_of_them() -> list[Landed | BaseException]:
        places = Landing(folder)
        ends = (
            places.land(came(folder, content, md5), Promise(md5, len(content), 10**6))
            for md5, content in contents.items()
        )
        return await asyncio.gather(*ends, return_exceptions=True)

    return asyncio.run(all_of_them())


def test_others_in_a_batch_do_not_share_the_end_of_one(tmp_path: Path) -> None:
    folder = DatasetFolder(tmp_path)
    good = {md5_of(png(shade)): png(shade) for shade in range(5)}
    text = b"no picture"
    ends = land(folder, good | {"0" * 32: png(200), md5_of(text): text})
    assert all(isinstance(end, Landed) for end in ends[:5])
    assert isinstance(ends[5], NotPromised)
    assert isinstance(ends[6], Unusable)
    places = {path.stem: path for path in folder.originals.rglob("*.*")}
    assert places.keys() == good.keys()
    assert all(md5_of(path.read_bytes()) == md5 for md5, path in places.items())
    assert [path.read_bytes() for path in folder.quarantine.iterdir()] == [png(200)]
    assert list(folder.parts.iterdir()) == []


def test_the_same_other_picture_again_is_what_the_site_has(tmp_path: Path) -> None:
    folder = DatasetFolder(tmp_path)
    (first,) = land(folder, {"0" * 32: png(1)})
    (second,) = land(folder, {"0" * 32: png(1)})
    assert isinstance(first, NotPromised)
    assert not isinstance(first, StableMismatch)
    assert isinstance(second, StableMismatch)
    assert not folder.originals.exists()


def test_what_is_in_memory_is_hashed_beside_the_loop(tmp_path: Path, monkeypatch) -> None:
    threads = set[int]()
    hashed = Part.digest_at_once

    def noted(part: Part) -> str:
        threads.add(threading.get_ident())
        return hashed(part)

    monkeypatch.setattr(Part, "digest_at_once", noted)
    content = png(3)
    (end,) = land(DatasetFolder(tmp_path), {md5_of(content): content})
    assert isinstance(end, Landed)
    assert threads
    assert threading.get_ident() not in threads


def test_what_is_removed_before_it_lands_is_no_empty_picture(tmp_path: Path) -> None:
    folder, content = DatasetFolder(tmp_path), png(7)

    async def landed() -> Landed:
        part = came(folder, content, md5_of(content))
        part.keep()
        part.path.unlink()
        return await Landing(folder).land(part, Promise(md5_of(content), None, 10**6))

    with pytest.raises(FileNotFoundError):
        asyncio.run(landed())
    assert list(folder.parts.iterdir()) == []


def test_a_fault_of_our_own_is_told_and_not_waited_for(tmp_path: Path, monkeypatch) -> None:
    def faulty(*asked: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr(Placing, "place", faulty)
    content = png(1)
    (end,) = land(DatasetFolder(tmp_path), {md5_of(content): content})
    assert isinstance(end, KeyError)


def test_a_file_of_no_bytes_is_no_picture(tmp_path: Path) -> None:
    folder = DatasetFolder(tmp_path)

    async def landed() -> Landed:
        part = part_of(folder, md5_of(b""))
        part.restart(None, 0)
        return await Landing(folder).land(part, Promise(part.path.stem, 0, 10**6))

    with pytest.raises(Unusable, match="empty"):
        asyncio.run(landed())


def test_nothing_is_begun_behind_its_end(tmp_path: Path, monkeypatch) -> None:
    """Where a run is stopped while parts wait for others: their bytes are fetched another time."""
    monkeypatch.setattr(landing, "GATHERING", 0.05)
    folder = DatasetFolder(tmp_path)

    async def stopped() -> None:
        places = Landing(folder)
        part = came(folder, png(1), md5_of(png(1)))
        landed = asyncio.create_task(places.land(part, Promise(part.path.stem, None, 10**6)))
        await asyncio.sleep(0)
        landed.cancel()
        places.close()
        await asyncio.sleep(0.1)

    asyncio.run(stopped())
    assert not folder.originals.exists()


@pytest.mark.parametrize("lanes", [1, 2])
def test_as_many_lanes_as_there_are_land_all_that_comes(
    tmp_path: Path, monkeypatch, lanes: int
) -> None:
    monkeypatch.setattr(landing, "LANES", lanes)
    monkeypatch.setattr(landing, "GATHERING", 0)
    folder = DatasetFolder(tmp_path)
    good = {md5_of(png(shade)): png(shade) for shade in range(40)}

    async def one_after_the_other() -> None:
        places = Landing(folder)

        async def one(md5: str, content: bytes) -> None:
            await asyncio.sleep(0.001 * content[-30])
            await places.land(came(folder, content, md5), Promise(md5, None, 10**6))

        await asyncio.gather(*(one(md5, content) for md5, content in good.items()))
        places.close()

    asyncio.run(one_after_the_other())
    assert {path.stem for path in folder.originals.rglob("*.png")} == good.keys()


@pytest.mark.parametrize("size", [WORTH_RESUMING - 1, WORTH_RESUMING, WORTH_RESUMING + 1])
@pytest.mark.parametrize("asked", ["early", "late"])
def test_a_part_has_the_md5_of_what_came_wherever_it_is_held(
    tmp_path: Path, size: int, asked: str
) -> None:
    """In memory, in the file, or on its way from one to the other, and asked twice."""
    content = bytes(range(256)) * (size // 256 + 1)
    chunks = [content[:1000], content[1000:size], b"the end"]

    async def digests() -> list[str]:
        part = part_of(DatasetFolder(tmp_path), "0" * 32)
        part.restart(None, None)
        seen = []
        for chunk in chunks:
            part.write(chunk)
            if asked == "early":
                seen.append(await part.digest())
        seen += [await part.digest(), part.digest_at_once()]
        part.keep()
        return [*seen, part.digest_at_once()]

    whole = md5_of(b"".join(chunks))
    seen = asyncio.run(digests())
    assert seen[-3:] == [whole] * 3
    if asked == "early":
        assert seen[:2] == [md5_of(chunks[0]), md5_of(content[:size])]
