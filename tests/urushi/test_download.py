"""What `urushi download` and `urushi credits` show, against a booru on loopback."""

import csv
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from demo.booru import BooruServer, running
from demo.booru_faults import Fault, no_faults
from demo.corpus import Corpus, generate
from pipeline.artefacts.records import ImageRecord, read_records

Urushi = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return generate(seed=5, count=48)


@pytest.fixture
def booru(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BooruServer]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with running(corpus=corpus) as server:
        yield server


@pytest.fixture
def recipe(booru: BooruServer, tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(
        f'name = "small"\n[download]\nsite = "danbooru"\nhost = "{booru.url}"\n'
        'tags = "maki-e_box"\nrequests_per_second = 1000.0\nconnections = 4\n'
    )
    return path


def test_a_download_ends_with_a_table_of_every_reason(
    urushi: Urushi, recipe: Path, corpus: Corpus
) -> None:
    ended = urushi("download", recipe)
    assert ended.returncode == 0, ended.stderr
    assert f"  {len(corpus.wanted())}  kept\n" in ended.stderr
    assert "   1  gone: HTTP 404\n" in ended.stderr
    assert ended.stdout == (
        f"download: done: small: {len(corpus.wanted())} pictures, {len(corpus.lost())} not to be"
        " had\n"
    )
    again = urushi("download", recipe)
    assert "already done" in again.stdout and "kept" not in again.stderr


def test_a_dry_run_fetches_no_file_and_its_pages_are_not_asked_for_again(
    urushi: Urushi, recipe: Path, corpus: Corpus, booru: BooruServer, tmp_path: Path
) -> None:
    before = urushi("plan", recipe).stdout
    assert "small: ≤50000 pictures; at 1000 requests a second at least 50.2 s" in before
    assert booru.count() == 0
    shown = urushi("download", recipe, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    lost = len(corpus.lost()) - 1  # The hidden one is known not to come.
    files = len(corpus.wanted()) + lost
    assert f"small: {files} pictures, of which {files} are still to be fetched" in shown.stdout
    known = {p.md5: p.bytes for p in corpus.posts if p.rating == "g" and not p.is_deleted}
    hidden = {p.md5 for p in corpus.posts if p.flaw in ("hidden", "animated", "video")}
    total = sum(size for md5, size in known.items() if md5 not in hidden)
    assert f"about {total / 1000:.3g} kB" in shown.stdout
    assert "  1  hidden: the site does not show its file\n" in shown.stdout
    assert booru.count("file") == 0
    dataset = tmp_path / "workspace" / "datasets" / "small"
    assert not (dataset / "images").exists() and not (dataset / "originals").exists()
    pages = booru.count("page")
    plan = urushi("plan", recipe).stdout
    assert f"small: {files} pictures, 0 of them settled; {files} to go" in plan
    assert urushi("download", recipe).returncode == 0
    assert booru.count("page") == pages


def test_a_sample_is_a_sheet_of_some_that_the_download_then_has(
    urushi: Urushi, recipe: Path, booru: BooruServer
) -> None:
    ended = urushi("download", recipe, "--sample", "7")
    assert ended.returncode == 0, ended.stderr
    path = Path(ended.stdout.strip())
    assert path.name == "sample.png"
    first = path.read_bytes()
    with Image.open(path) as sheet:
        assert sheet.size == (5 * 248 + 8, 2 * 276 + 8)
        # Two of the second row, then paper.
        colours = sheet.crop((8, 284, 248, 500)).getcolors(10**6)
        assert colours is not None and len(colours) > 50
        assert sheet.crop((760, 284, 1240, 556)).getcolors() == [(480 * 272, (255, 255, 255))]
    asked = {hit.name for hit in booru.hits if hit.kind == "file"}
    assert len(asked) == 7
    urushi("download", recipe, "--sample", "7")
    assert path.read_bytes() == first
    assert {hit.name for hit in booru.hits if hit.kind == "file"} == asked
    assert urushi("download", recipe).returncode == 0
    once = [hit for hit in booru.hits if hit.kind == "file" and hit.name in asked]
    assert len(once) == len(asked)


def test_a_sample_says_what_is_not_on_its_sheet(
    urushi: Urushi, recipe: Path, booru: BooruServer, corpus: Corpus
) -> None:
    ended = urushi("download", recipe, "--sample", "48")
    told = [line for line in ended.stderr.splitlines() if "is not on the sheet" in line]
    lost = {p.id: p.flaw for p in corpus.posts if p.flaw in ("missing", "mismatch")}
    assert {line.partition(" ")[0] for line in told} == {f"danbooru:{number}" for number in lost}
    assert any(line.endswith("is not on the sheet: gone: HTTP 404") for line in told)


def test_a_refresh_that_is_killed_goes_on(
    urushi: Urushi, recipe: Path, booru: BooruServer, corpus: Corpus, tmp_path: Path
) -> None:
    urushi("download", recipe)
    kept = [p for p in corpus.posts if p.md5 in corpus.wanted() and p.flaw is None]
    doubled = {p.md5 for p in corpus.posts if p.flaw == "double"}
    risen = next(p for p in kept if p.md5 not in doubled)
    booru.posts[risen.id] = replace(risen, up_score=risen.up_score + 100)
    files = booru.count("file")
    for step in range(3):  # Killed while the site is slow to answer each kind of question.
        seen = booru.count()
        booru.faults = lambda hit, least=seen + step: (
            Fault(stall=5) if booru.count() > least else None
        )
        process = subprocess.Popen(
            [Path(sys.executable).with_name("urushi"), "download", recipe, "--refresh"],
            cwd=tmp_path,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while booru.count() <= seen + step and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    booru.faults = no_faults
    ended = urushi("download", recipe, "--refresh")
    assert ended.returncode == 0, ended.stderr
    rows = read_records(
        tmp_path / "workspace" / "datasets" / "small" / "images" / "images.jsonl", ImageRecord
    )
    assert {row.md5 for row in rows} == corpus.wanted()
    assert {row.score for row in rows if row.md5 == risen.md5} == {risen.score + 100}
    (missing,) = [post.md5 for post in corpus.posts if post.flaw == "missing"]
    again = [hit.name for hit in booru.hits if hit.kind == "file"][files:]
    assert again == [missing] * 2  # What its host did not have is tried once more.


def test_verify_finds_what_rotted_and_the_next_download_mends_it(
    urushi: Urushi, recipe: Path, booru: BooruServer, corpus: Corpus
) -> None:
    nothing = urushi("download", recipe, "--verify")
    assert nothing.returncode == 2 and "Nothing of small has been downloaded" in nothing.stderr
    urushi("download", recipe)
    whole = urushi("download", recipe, "--verify")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout == f"small: {len(corpus.wanted())} pictures, 0 of them wrong\n"
    root = recipe.parent / "workspace" / "datasets" / "small" / "originals"
    rotten, lost, *_ = sorted(path for path in root.rglob("*") if path.is_file())
    content = rotten.read_bytes()
    rotten.write_bytes(content[:-1] + b"?")
    lost.unlink()
    (root / "note.txt").write_text("mine")
    requests = booru.count()
    found = urushi("download", recipe, "--verify")
    assert found.returncode == 1 and "2 pictures are not what they were" in found.stderr
    assert f"{rotten}: its bytes have the md5" in found.stdout
    assert f"{lost}: it is not there" in found.stdout
    assert "1 files of which nothing is known" in found.stdout
    assert booru.count() == requests
    assert urushi("download", recipe).returncode == 0
    assert rotten.read_bytes() == content and lost.is_file()
    names = [hit.name for hit in booru.hits[requests:] if hit.kind == "file"]
    assert sorted(names) == sorted((rotten.stem, lost.stem))
    assert urushi("download", recipe, "--verify").returncode == 0


def test_credits_name_every_artist_with_the_pictures(
    urushi: Urushi, recipe: Path, corpus: Corpus, tmp_path: Path
) -> None:
    early = urushi("credits", "small")
    assert early.returncode == 2 and "There are none yet." in early.stderr
    urushi("download", recipe)
    kept = [p for p in corpus.posts if p.md5 in corpus.wanted() and p.rating == "g"]
    expected: dict[str, set[str]] = {}
    for post in kept:
        for other in kept:
            if other.md5 == post.md5:
                expected.setdefault(other.tags["artist"][0], set()).add(post.md5)
    ended = urushi("credits", "small", "--out", tmp_path / "credits.json")
    assert ended.returncode == 0, ended.stderr
    rows = json.loads((tmp_path / "credits.json").read_text())
    assert {row["artist"]: row["pictures"] for row in rows} == {
        artist: len(md5s) for artist, md5s in expected.items()
    }
    assert [row["pictures"] for row in rows] == sorted(map(len, expected.values()), reverse=True)
    for row in rows:
        assert {source["md5"] for source in row["sources"]} == expected[row["artist"]]
        assert row["former"] == [k for k, name in corpus.aliases.items() if name == row["artist"]]
    assert urushi("credits", recipe, "--out", tmp_path / "c.csv").returncode == 0
    table = list(csv.DictReader(io.StringIO((tmp_path / "c.csv").read_text())))
    assert {row["artist"] for row in table} == set(expected)
    assert {f"danbooru:{post.id}" for post in kept} >= {row["post"] for row in table}
    shown = urushi("credits", "small").stdout
    formers = {name: f" (once {former})" for former, name in corpus.aliases.items()}
    headings = {f"## {artist}{formers.get(artist, '')}" for artist in expected}
    assert headings <= set(shown.replace(chr(92), "").splitlines())
    assert formers.keys() & expected.keys()
    wrong = urushi("credits", "small", "--out", "credits.doc")
    assert wrong.returncode == 2 and ".md, .csv, .json" in wrong.stderr


def test_folders_can_be_sampled_verified_and_looked_at(urushi: Urushi, tmp_path: Path) -> None:
    recipe, pictures = tmp_path / "mine.toml", tmp_path / "pictures"
    pictures.mkdir()
    recipe.write_text('name = "mine"\n[folder]\npath = "pictures"\n')
    for number in range(3):
        Image.new("RGB", (30 + number, 20), (90 * number, 0, 0)).save(pictures / f"{number}.png")
    assert "3 pictures lie in the folder" in urushi("download", recipe, "--dry-run").stdout
    assert not (tmp_path / "workspace").exists()
    sample = urushi("download", recipe, "--sample", "2")
    assert Path(sample.stdout.strip()).is_file(), sample.stderr
    Image.new("RGB", (9, 9)).save(pictures / "1.png")
    assert urushi("download", recipe, "--verify").returncode == 1
    assert urushi("download", recipe).returncode == 0
    assert urushi("download", recipe, "--verify").returncode == 0
    assert "(not named)" in urushi("credits", recipe).stdout.replace("\\", "")


@pytest.mark.parametrize("other", ["--refresh", "--retry"])
def test_one_thing_at_a_time(urushi: Urushi, recipe: Path, other: str) -> None:
    ended = urushi("download", recipe, "--verify", other)
    assert ended.returncode == 2 and "one by one" in ended.stderr


def test_a_retry_asks_for_what_is_lost_alone(
    urushi: Urushi, recipe: Path, booru: BooruServer, corpus: Corpus
) -> None:
    assert urushi("download", recipe).returncode == 0
    before = booru.count()
    ended = urushi("download", recipe, "--retry")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"download: done: small: {len(corpus.wanted())} pictures")
    assert {hit.name for hit in booru.hits[before:]}.isdisjoint(corpus.wanted())
    assert booru.count() > before
