import hashlib
import importlib.util
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.artefacts.workspace import BuildFolder
from pipeline.preview import wording
from pipeline.preview.counts import StageCount
from pipeline.preview.data import DatasetFacts
from pipeline.preview.report import write_report
from pipeline.preview.slider import SIDES, embed, embedded_side
from pipeline.recipe.preview import Preview
from pipeline.size import Size

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
        if self.open[-1:] not in (["style"], ["script"]):
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


def test_it_loads_nothing_and_escapes_everything(build: Any) -> None:
    folder, ledger = build
    source = write_report(folder, ledger).read_text()
    page = Reader(source)
    tags = [tag for tag, _ in page.elements]
    assert not {"link", "iframe", "object"} & set(tags)
    # One script, ours, which the page's own policy knows by its digest: no other would run.
    assert tags.count("script") == 1
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "xlink:href", "action", "data"):
            if name in attributes:
                assert attributes[name].startswith(("data:image/", "#")), (tag, name)
        assert not [name for name in attributes if name.startswith("on")]
    assert re.findall(r"url\((?!#)", source) == []
    assert "@import" not in source
    # The prompt as a choice and as a label, and the recipe's comment; as markup nowhere.
    assert page.text.count(EVIL) == 3
    alts = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    # Origin and rounds 1, 2 and 4: round 3 was left out. The divider's two are filled from these.
    assert alts.count(f"origin: {EVIL}") == 1
    assert len(alts) == 4 * 2 + 2


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
    assert source.count("data:image/webp;base64,") == 2
    assert "data:image/png" not in source


def test_many_pictures_are_embedded_smaller_than_few(tmp_path: Path) -> None:
    assert embedded_side(12) == SIDES[0]
    assert SIDES[0] > embedded_side(120) > embedded_side(1_000) == SIDES[-1]
    noisy = Image.effect_noise((1024, 1024), 60).convert("RGB")
    noisy.save(tmp_path / "a.png")
    large, small = (embed(tmp_path / "a.png", side).uri for side in (512, 256))
    assert len(small) < len(large) < (tmp_path / "a.png").stat().st_size
    assert embed(tmp_path / "a.png", 256).uri == small


def test_what_was_learned_and_who_made_it(build: Any) -> None:
    folder, ledger = build
    text = Reader(write_report(folder, ledger, (), [FACTS]).read_text()).text
    for words in (
        "1,000 pictures of some_tag rating:g, from danbooru (990), e621 (10); rated general.",
        "42 different tags; a caption has 1 to 9, in the middle 4.5.",
        "The recipe excludes 2 artists, 1 file.",
        "1girl 90 % solo 45 %",
        "64 × 64 100 %",
        "gone: HTTP 404 31",
        "2 artists of pictures, and 3 pictures that name none kin pun 700 <b>other</b> 297",
    ):
        assert words.replace(" ", "") in text.replace(" ", ""), words


FACTS = DatasetFacts(
    name="pictures",
    asked="some_tag rating:g",
    pictures=1_000,
    sites=(("danbooru", 990), ("e621", 10)),
    ratings=(("general", 1_000),),
    left_out=(("gone: HTTP 404", 31),),
    excluded=("2 artists", "1 file"),
    artists=(("kin_pun", 700), ("<b>other</b>", 297)),
    unnamed=3,
    tags=(("1girl", 900), ("solo", 450)),
    different_tags=42,
    lengths=(1, 4.5, 9),
    quality=(("masterpiece", 300),),
    buckets=(("64x64", 1_000),),
)


def _driver() -> Any:
    """tests/preview/chromium.py, which no test can import by name."""
    place = Path(__file__).with_name("chromium.py")
    spec = importlib.util.spec_from_file_location("chromium_driver", place)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DRIVER = _driver()
needs_browser = pytest.mark.skipif(DRIVER.BROWSER is None, reason="no chromium on this machine")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with DRIVER.chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@needs_browser
@pytest.mark.parametrize(("scheme", "paper"), [("dark", (19, 16, 16)), ("light", (248, 245, 239))])
def test_a_browser_shows_it_in_dark_and_light(
    scheme: str, paper: tuple[int, int, int], build: Any, tab: Any, tmp_path: Path
) -> None:
    folder, ledger = build
    tab.open(write_report(folder, ledger), 1200, 1000, scheme)
    with Image.open(tab.shot(tmp_path / "page.png", whole=True)) as opened:
        page = opened.convert("RGB")
    assert page.getpixel((3, page.height - 3)) == paper
    colours = {colour: count for count, colour in page.getcolors(2**24) or []}
    # Two pictures of the origin and six of the rounds, and the divider's two halves.
    assert colours[(1, 200, 3)] > 5_000
    assert colours[(1, 3, 200)] > 3 * 5_000
    assert not [event for event in tab.events if event["method"] == "Runtime.exceptionThrown"]


def _divided(tab: Any) -> tuple[str, str, str]:
    """What the divider shows: the left picture, the right one, and where it stands."""
    left, right, cut = tab.run(
        "[...['.over', '.under'].map(s => document.querySelector('.stage ' + s).alt),"
        " getComputedStyle(document.querySelector('.stage .over')).clipPath]"
    )
    return left, right, cut


def _middle(tab: Any, selector: str) -> tuple[float, float, float]:
    """Left edge, width and middle height of an element that is scrolled into view, pixels."""
    left, width, middle = tab.run(
        f"(e => {{ e.scrollIntoView({{block: 'center', behavior: 'instant'}});"
        " const r = e.getBoundingClientRect(); return [r.left, r.width, r.top + r.height / 2] })"
        f"(document.querySelector({selector!r}))"
    )
    return left, width, middle


@needs_browser
def test_the_divider_moves_by_keys_and_mouse_and_chooses_rounds(
    build: Any, tab: Any, tmp_path: Path
) -> None:
    folder, ledger = build
    tab.open(write_report(folder, ledger), 1000, 900)
    assert _divided(tab) == (
        "origin: a red circle",
        "round 4: a red circle",
        "inset(0px 50% 0px 0px)",
    )
    tab.run("document.querySelector('.stage input').focus()")
    for _ in range(3):
        tab.key("ArrowRight", 39)
    assert _divided(tab)[2] == "inset(0px 47% 0px 0px)"
    assert tab.run("document.querySelector('.stage input').ariaValueText") == (
        "53 % origin, the rest round 4"
    )
    left, width, middle = _middle(tab, ".stage")
    tab.press(left + 0.2 * width, middle)
    assert _divided(tab)[2] == "inset(0px 80% 0px 0px)"
    with Image.open(tab.shot(tmp_path / "page.png")) as opened:
        page = opened.convert("RGB")
    assert page.getpixel((int(left + 0.1 * width), int(middle))) == (1, 200, 3)
    assert page.getpixel((int(left + 0.5 * width), int(middle))) == (1, 3, 200)
    left, width, middle = _middle(tab, ".compare .after")
    tab.press(left + width / 2, middle)
    assert _divided(tab)[:2] == (f"origin: {EVIL}", f"round 4: {EVIL}")
    # A picture of the grid, round 1's of the first prompt, comes up on the right.
    left, width, middle = _middle(tab, "[data-row='0'][data-column='1']")
    tab.press(left + width / 2, middle)
    assert _divided(tab)[:2] == ("origin: a red circle", "round 1: a red circle")


@needs_browser
@pytest.mark.parametrize("width", [360, 390, 800])
def test_nothing_scrolls_sideways_on_a_phone(width: int, build: Any, tab: Any) -> None:
    folder, ledger = build
    tab.open(write_report(folder, ledger, (), [FACTS]), width, 800)
    tab.run("document.querySelectorAll('details').forEach(d => { d.open = true })")
    widest = tab.run(
        "[...document.querySelectorAll('body *')].map(e => [e.getBoundingClientRect().right,"
        " e.tagName + '.' + e.getAttribute('class')]).sort((a, b) => b[0] - a[0])[0]"
    )
    assert tab.run("document.documentElement.scrollWidth") <= width, widest
