"""Tokens counted without torch are the ones that the model's own tokenizer makes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import CLIPTokenizer

from pipeline.artefacts.chain import CAPTIONS_FILE
from pipeline.artefacts.job import Job
from pipeline.artefacts.records import CaptionRecord, ImageRecord, read_records
from pipeline.caption.rules import compile_rules, write_caption
from pipeline.caption.stage import run
from pipeline.caption.tokens import Tokens
from pipeline.errors import RequestError
from pipeline.progress import Silent
from pipeline.recipe.caption import Caption

BOORU = 'name = "set"\n[download]\nsite = "danbooru"\ntags = "sky"\n'
TOKENIZER = Path(__file__).parents[2] / "demo" / "base" / "config" / "tokenizer"
TEXTS = [
    "1girl",
    "blue archive (series)",
    "don't look",
    ":)",
    "^_^",
    "x 3",
    "Ünïcode  ñame",
    "masterpiece",
    "2024!!",
]


def test_as_many_as_the_models_own_makes() -> None:
    ours, theirs = Tokens(TOKENIZER), CLIPTokenizer.from_pretrained(TOKENIZER)
    for count in range(len(TEXTS) + 1):
        texts = TEXTS[:count]
        ids = theirs(", ".join(texts)).input_ids
        assert ours.of(texts) == len(ids) - 2, texts
    assert ours.of(list(reversed(TEXTS))) == len(theirs(", ".join(reversed(TEXTS))).input_ids) - 2


def parts(folder: Path) -> Path:
    """The demo's tokenizer as vocab.json and merges.txt, as older models have theirs."""
    folder.mkdir()
    model = json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return folder


def test_vocabulary_and_merges_count_as_the_whole_file_does(tmp_path: Path) -> None:
    ours = Tokens(parts(tmp_path / "tokenizer"))
    for count in range(len(TEXTS) + 1):
        assert ours.of(TEXTS[:count]) == Tokens(TOKENIZER).of(TEXTS[:count])


def test_whole_tags_are_cut_ordinary_ones_first(image: Callable[..., ImageRecord]) -> None:
    picture = image(
        score=60, general=("1girl", "sky", "long_hair", "red_circle"), character=("serika",)
    )
    free = write_caption(picture, compile_rules(Caption(), [picture], from_booru=True))
    assert free.record.caption == "1girl, serika, sky, long hair, red circle, masterpiece"
    count = Tokens(TOKENIZER).of(free.record.caption.split(", "))

    def written(most: int) -> tuple[str, list[str]]:
        caption = Caption(max_tokens=most, tokenizer=TOKENIZER)
        one = write_caption(picture, compile_rules(caption, [picture], from_booru=True))
        assert Tokens(TOKENIZER).of(one.record.caption.split(", ")) <= most
        return one.record.caption, [c.tag for c in one.changes if c.what == "cut"]

    assert written(count) == (free.record.caption, [])
    assert written(count - 1) == ("1girl, serika, sky, long hair, masterpiece", ["red circle"])
    texts, cut = written(Tokens(TOKENIZER).of(["1girl", "serika"]))
    assert texts == "1girl, serika"
    assert cut == ["red circle", "long hair", "sky", "masterpiece"]


def test_the_stage_says_what_was_cut_and_a_changed_tokenizer_counts_anew(
    downloaded: Callable[..., Job], image: Callable[..., ImageRecord], heard: Silent, tmp_path: Path
) -> None:
    folder = parts(tmp_path / "tokenizer")
    tags = ("sky", "sea", "cat")
    pictures = [image(n, general=tags[: n + 1], meta=("highres",)) for n in range(3)]
    most = Tokens(TOKENIZER).of(["sky", "sea"])
    job = downloaded(
        pictures, f'{BOORU}[caption]\nquality = []\nmax_tokens = {most}\ntokenizer = "{folder}"\n'
    )
    assert not run(job, heard).already
    assert run(job, heard).already
    said = " ".join(getattr(heard, "lines"))  # noqa: B009
    assert f"more than {most} tokens: 1; 1 tags at their ends are left out" in said
    captions = next(tmp_path.rglob(CAPTIONS_FILE))
    texts = [record.caption for record in read_records(captions, CaptionRecord)]
    assert texts == ["sky", "sky, sea", "sky, sea"]
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(vocabulary, indent=1))
    assert not run(job, heard).already


def test_what_is_wrong_with_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="max_tokens and no tokenizer"):
        Caption(max_tokens=75)
    with pytest.raises(RequestError, match=r"holds no tokenizer that can be read"):
        Tokens(tmp_path)
