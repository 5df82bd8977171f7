"""[exclude] and its lists into rules."""

from pathlib import Path

import pytest

from pipeline.artefacts.chain import download_fingerprint
from pipeline.download.rules import exclusions, rules_of
from pipeline.errors import RequestError
from pipeline.recipe import DatasetRecipe
from pipeline.recipe.dataset import Exclude

MD5 = "0123456789abcdef0123456789abcdef"


def dataset(**exclude: object) -> DatasetRecipe:
    return DatasetRecipe.model_validate(
        {"name": "s", "download": {"site": "danbooru", "tags": "cat"}, "exclude": exclude}
    )


def test_entries_are_spelled_as_sites_spell_them() -> None:
    found = exclusions(
        Exclude(
            artists=("Some Artist", "some_artist"),
            tags=("Cat_Ears",),
            posts=(7,),
            md5s=(MD5.upper(),),
            uploaders=("Bob",),
            domains=("https://Example.com/x",),
        )
    )
    assert [(one.kind, one.pattern, one.origin) for one in found] == [
        ("md5", MD5, "[exclude].md5s"),
        ("post", "7", "[exclude].posts"),
        ("artist", "some_artist", "[exclude].artists"),
        ("tag", "cat_ears", "[exclude].tags"),
        ("uploader", "bob", "[exclude].uploaders"),
        ("domain", "example.com", "[exclude].domains"),
    ]


def test_a_list_has_one_entry_a_line(tmp_path: Path) -> None:
    path = tmp_path / "do-not-train.txt"
    path.write_text(
        f"\ufeff# those who asked\n\nSome Artist\n{MD5.upper()}\ntag: cat ears\nPOST:7\n"
        f"uploader:bob\ndomain:example.com\nre:dive\nartist:some_artist\nmd5:{MD5}\n",
        encoding="utf-8",
    )
    found = {str(one): one.origin for one in exclusions(Exclude(files=(path,)))}
    assert found == {
        "artist some_artist": "do-not-train.txt, line 3",
        f"md5 {MD5}": "do-not-train.txt, line 4",
        "tag cat_ears": "do-not-train.txt, line 5",
        "post 7": "do-not-train.txt, line 6",
        "uploader bob": "do-not-train.txt, line 7",
        "domain example.com": "do-not-train.txt, line 8",
        "artist re:dive": "do-not-train.txt, line 9",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat\nmd5:12\n", "line 2.*names no md5"),
        ("post:x\n", "line 1.*no post's number"),
        ("tag:\n", "line 1.*names no tag"),
    ],
)
def test_a_line_that_means_nothing_is_refused_by_its_number(
    tmp_path: Path, text: str, words: str
) -> None:
    """A name that is silently passed over would be trained on."""
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(RequestError, match=words):
        rules_of(dataset(files=[str(path)]))


def test_a_list_that_is_not_there_stops_the_download(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    for read in (rules_of, download_fingerprint):
        with pytest.raises(RequestError, match=r"list\.txt of \[exclude\]\.files cannot be read"):
            read(dataset(files=[str(path)]))
    path.write_bytes(b"\xff\xfe\x00\xff")
    with pytest.raises(RequestError, match="not UTF-8"):
        rules_of(dataset(files=[str(path)]))


def test_what_is_excluded_is_part_of_the_question(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("someone\n")
    before = [download_fingerprint(dataset()), download_fingerprint(dataset(files=[str(path)]))]
    path.write_text("someone\nsomeone_else\n")
    after = download_fingerprint(dataset(files=[str(path)]))
    assert len({*before, after, download_fingerprint(dataset(posts=[1]))}) == 4
