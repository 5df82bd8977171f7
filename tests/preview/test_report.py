import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.artefacts.workspace import BuildFolder
from pipeline.preview import wording
from pipeline.preview.counts import StageCount
from pipeline.preview.report import write_report
from pipeline.recipe import Size
from pipeline.recipe.preview import Preview

EVIL = "<script>alert('x')</script> & \"quotes\""
PREVIEW = Preview(prompts=("a red circle", EVIL))
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Text, attributes, and whether every element that opens closes in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.pieces: list[str] = []
        self.balanced = True
        self.feed(page)
        self.close()
        self.balanced &= not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        self.balanced &= bool(self.open) and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())


@pytest.fixture
def build(tmp_path: Path, make: Any) -> tuple[BuildFolder, Any]:
    folder = BuildFolder(tmp_path / "builds" / "coat")
    rows = (
        make.row(1),
        make.row(2, decision="accepted on retry", attempts=2),
        make.row(3, strength=0, decision="rejected", attempts=2),
        make.row(4, decision="always", candidates=()),
    )
    make.samples(folder, 0, "origin", (1, 200, 3), PREVIEW)
    for row in rows:
        if row.strength:
            make.samples(folder, row.round, row.checkpoint_sha256, (1, 3, 200), PREVIEW)
    folder.final.write_bytes(b"model")
    folder.final_lora.write_bytes(b"lora")
    folder.recipe.write_text(f"name = 'coat'  # {EVIL}\n")
    ledger = make.ledger(
        *rows,
        final="final.safetensors",
        final_sha256="cd" * 32,
        final_lora="final.lora.safetensors",
        origin="/a folder/<base>.safetensors",
    )
    return folder, ledger


def test_every_number_of_every_round_is_there(build: Any) -> None:
    folder, ledger = build
    counts = [StageCount("download", "pictures", 1.0, "383 images, 4 failures")]
    page = Reader(write_report(folder, ledger, counts).read_text())
    assert page.balanced
    start = page.text.index("Round by round")
    table = page.text[start : page.text.index("What the columns mean")]
    for row in ledger.rounds:
        assert row.lora in page.text
        assert row.sha256 in page.text
        for wanted in (
            wording.rate(row.learning_rate),
            f"{row.steps}",
            f"{row.strength:.2f}",
            f"{row.heldout_before:.4f} → {row.heldout_after:.4f}",
            wording.signed(row.heldout_before - row.heldout_after) if row.strength else "none",
            wording.signed(row.improvement_low),
            wording.signed(row.improvement_high),
            wording.loss(row.train_loss),
            wording.share(row.cast_loss),
            wording.duration(row.seconds),
        ):
            assert wanted in table, (row.round, wanted)
    for decision in ("accepted", "accepted on retry", "rejected, left out", "merged, no gate"):
        assert decision in page.text
    assert "cd" * 32 in page.text
    assert hashlib.sha256(b"lora").hexdigest() in page.text
    assert "383 images, 4 failures" in page.text
    # 1.5 at the origin, 1.41 / 5 = 0.282 after round 4: 81.2 % lower. Round 3 was not merged.
    assert "3 rounds of training took the held-out loss from 1.5000 to 0.2820: 81 % lower." in (
        page.text
    )
    command = page.text[page.text.index("urushi merge") :]
    assert command.startswith("urushi merge '/a folder/<base>.safetensors' \\ rounds/01/lora")
    assert "rounds/03/lora" not in command.split("--out")[0]
    assert "--strength 0.81 --strength 0.82 --strength 0.84" in command


def test_it_loads_nothing_runs_nothing_and_escapes_everything(build: Any) -> None:
    folder, ledger = build
    source = write_report(folder, ledger).read_text()
    page = Reader(source)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "xlink:href", "action", "data"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/", "#")), (tag, name)
        assert not [name for name in attributes if name.startswith("on")]
    assert re.findall(r"url\((?!#)", source) == []
    assert "@import" not in source
    # The prompt as a label, and the recipe's comment; as markup nowhere.
    assert page.text.count(EVIL) == 2
    alts = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    # Origin, rounds 1 and 2, round 3 as round 2 left it, round 4.
    assert alts.count(f"origin: {EVIL}") == 1
    assert len(alts) == 5 * 2


def test_the_same_build_gives_the_same_bytes_and_is_not_written_twice(build: Any) -> None:
    folder, ledger = build
    path = write_report(folder, ledger)
    first, stat = path.read_bytes(), path.stat()
    write_report(folder, ledger)
    assert path.stat().st_ino == stat.st_ino
    path.unlink()
    assert write_report(folder, ledger).read_bytes() == first


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "1 round of training took the held-out loss from 1.5000 to 0.7050: 53 % lower."),
        ({"heldout_after": 1.8}, "1 round of training did not help: the held-out loss went from"),
        ({"strength": 0, "decision": "rejected"}, "No round helped, and none was merged"),
    ],
)
def test_the_verdict_says_what_happened(
    changes: Any, sentence: str, tmp_path: Path, make: Any
) -> None:
    ledger = make.ledger(make.row(1, **changes), status="stopped by the gate")
    text = Reader(write_report(BuildFolder(tmp_path), ledger).read_text()).text
    assert sentence in text
    assert "The gate stopped the build early" in text
    assert "The final files are written when the last round is done." in text


def test_a_build_without_rounds_has_a_report(tmp_path: Path, make: Any) -> None:
    page = Reader(write_report(BuildFolder(tmp_path), make.ledger(status="running")).read_text())
    assert page.balanced
    assert "No round has finished yet" in page.text


def test_large_pictures_are_embedded_smaller(tmp_path: Path, make: Any) -> None:
    folder = BuildFolder(tmp_path)
    make.samples(folder, 0, "origin", (1, 200, 3), PREVIEW, Size(1024, 512))
    source = write_report(folder, make.ledger()).read_text()
    assert source.count("data:image/jpeg;base64,") == 2
    assert "data:image/png" not in source


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
@pytest.mark.parametrize(("scheme", "paper"), [("0", (20, 16, 16)), ("1", (247, 244, 239))])
def test_a_browser_shows_it_in_dark_and_light(
    scheme: str, paper: tuple[int, int, int], build: Any, tmp_path: Path
) -> None:
    folder, ledger = build
    shot = tmp_path / "page.png"
    subprocess.run(
        [
            str(BROWSER),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1200,1000",
            f"--screenshot={shot}",
            write_report(folder, ledger).as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with Image.open(shot) as opened:
        page = opened.convert("RGB")
    assert page.getpixel((3, 3)) == paper
    colours = {colour: count for count, colour in page.getcolors(2**24) or []}
    # Two pictures of the origin and eight of the rounds, each some thousand pixels.
    assert colours[(1, 200, 3)] > 5_000
    assert colours[(1, 3, 200)] > 4 * 5_000
