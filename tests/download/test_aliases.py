"""What artists were called before: asked for once, excluded by, exported, never lost."""

import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from demo.booru import BooruServer, running
from demo.booru_dialects import Family
from demo.booru_faults import Fault, Hit
from demo.corpus import ALIASES, Corpus
from pipeline.artefacts.chain import FORMERS_FILE, caption_fingerprint, images_receipt
from pipeline.artefacts.job import load_job
from pipeline.artefacts.records import read_former_names
from pipeline.download.aliases import Aliases
from pipeline.download.posts import Malformed, Question
from pipeline.download.sites import dialect_of
from pipeline.download.store import Store
from pipeline.errors import UrushiError
from pipeline.progress import Silent

FAMILIES: dict[str, Family] = {"danbooru": "danbooru", "e621": "e621", "yandere": "moebooru"}
FORMER, TODAY = next(iter(ALIASES.items()))


def known(downloading) -> dict[str, tuple[str, ...]]:
    return read_former_names(downloading.folder.images / FORMERS_FILE)


def captions(downloading) -> str:
    """The fingerprint of the dataset's captions."""
    job = load_job(downloading.recipe, downloading.workspace)
    dataset = job.datasets[0][1]
    return caption_fingerprint(dataset, images_receipt(job, dataset), job.workspace.identities)


def asked(booru: BooruServer) -> list[str]:
    return [hit.path for hit in booru.hits if hit.kind == "aliases"]


def theirs(corpus: Corpus) -> set[str]:
    """The pictures of the artist who was renamed."""
    return {p.md5 for p in corpus.posts if TODAY in p.tags["artist"]} & corpus.wanted()


@pytest.mark.parametrize("site", FAMILIES)
def test_a_site_that_tells_is_asked_once(downloading, corpus: Corpus, site: str) -> None:
    with running(corpus=corpus, family=FAMILIES[site]) as booru:
        ratings = ["general"] if site == "danbooru" else ["sensitive"]
        downloading.write(booru.url, site=site, ratings=ratings)
        downloading.run()
        artists = {a for image in downloading.images().values() for a in image.tags["artist"]}
        expected = {name: (former,) for former, name in ALIASES.items() if name in artists}
        assert TODAY in expected and known(downloading) == expected
        assert len(asked(booru)) == 1
        (downloading.folder.images / "receipt.json").unlink()
        downloading.run()
        downloading.run(refresh=True)
        assert len(asked(booru)) == 1 and known(downloading) == expected


def test_a_site_without_such_a_list_is_not_asked(downloading, corpus: Corpus) -> None:
    with running(corpus=corpus, family="gelbooru") as booru:
        downloading.write(booru.url, site="gelbooru")
        downloading.run()
        assert not asked(booru) and not known(downloading)
        assert FORMERS_FILE not in {path.name for path in downloading.folder.images.iterdir()}


def test_a_former_name_excludes(downloading, booru: BooruServer, corpus: Corpus, told) -> None:
    downloading.write(booru.url, exclude={"artists": [FORMER]})
    downloading.run(told)
    rule = f"artist {FORMER}, now {TODAY}"
    assert set(downloading.images()) == corpus.wanted() - theirs(corpus)
    assert downloading.rows("SELECT DISTINCT rule, origin FROM left_out") == [
        (rule, "[exclude].artists")
    ]
    assert any(f"excluded: {rule}" in line for line in told.lines)
    fetched = {hit.name for hit in booru.hits if hit.kind == "file"}
    assert theirs(corpus) and not theirs(corpus) & fetched


def test_what_a_former_name_excludes_is_made_up_for(
    downloading, booru: BooruServer, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.download.danbooru.PER_PAGE", 3)
    limit = len(corpus.wanted()) - len(theirs(corpus)) - 4
    downloading.write(booru.url, limit=limit, exclude={"artists": [FORMER]})
    downloading.run()
    settled = downloading.rows("SELECT count(*) FROM job WHERE state <> 'planned'")
    assert settled == [(limit,)]


def test_the_name_of_today_excludes_posts_that_still_have_the_former(
    downloading, booru: BooruServer, corpus: Corpus
) -> None:
    late = next(p for p in corpus.posts if p.md5 in theirs(corpus) and p.flaw is None)
    booru.posts[late.id] = replace(late, tags={**late.tags, "artist": (FORMER,)})
    downloading.write(booru.url, exclude={"artists": [TODAY]})
    downloading.run()
    assert set(downloading.images()) == corpus.wanted() - theirs(corpus)
    assert (f"artist {TODAY}, once {FORMER}",) in downloading.rows("SELECT rule FROM left_out")


def test_a_rename_is_seen_by_a_later_refresh_and_writes_captions_anew(
    downloading, booru: BooruServer
) -> None:
    downloading.write(booru.url)
    downloading.run()
    before = captions(downloading)
    downloading.run(refresh=True)
    assert captions(downloading) == before and len(asked(booru)) == 1
    booru.aliases |= {"older_still": TODAY}
    with closing(sqlite3.connect(downloading.folder.posts)) as db:
        db.execute("UPDATE tag SET aliases_at = '2026-01-01' WHERE aliases_at IS NOT NULL")
        db.commit()
    downloading.run(refresh=True)
    assert known(downloading)[TODAY] == (FORMER, "older_still")
    assert captions(downloading) != before
    booru.aliases.pop("older_still")
    with closing(sqlite3.connect(downloading.folder.posts)) as db:
        db.execute("UPDATE tag SET aliases_at = '2026-01-01' WHERE aliases_at IS NOT NULL")
        db.commit()
    downloading.run(refresh=True)
    assert captions(downloading) == before


def test_a_site_that_fails_to_tell_stops_the_download_which_goes_on(
    downloading, serving, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.download.categories.MOST_NAMES", 2)
    failing = True

    def faults(hit: Hit) -> Fault | None:
        second = hit.kind == "aliases" and len(asked(booru)) > 1
        return Fault(status=403) if failing and second else None

    booru = serving(faults)
    downloading.write(booru.url)
    with pytest.raises(UrushiError, match="former names of artists"):
        downloading.run()
    assert not (downloading.folder.images / "receipt.json").exists()
    assert downloading.rows("SELECT count(*) FROM tag WHERE aliases_at IS NOT NULL") == [(2,)]
    failing = False
    downloading.run()
    assert len(asked(booru)) - 1 == len({*asked(booru)})  # The one that failed, once more.
    assert set(downloading.images()) == corpus.wanted()
    artists = {a for image in downloading.images().values() for a in image.tags["artist"]}
    assert set(known(downloading)) == artists & set(ALIASES.values())


def test_a_server_that_lacks_the_list_is_said_and_asked_again(
    downloading, serving, corpus: Corpus, told
) -> None:
    booru = serving(lambda hit: Fault(status=404) if hit.kind == "aliases" else None)
    downloading.write(booru.url)
    downloading.run(told)
    assert set(downloading.images()) == corpus.wanted()
    assert any("no list of tag aliases" in line for line in told.lines)
    (downloading.folder.images / "receipt.json").unlink()
    downloading.run()
    assert len(asked(booru)) == 2


def test_names_go_by_the_hundred_and_a_full_answer_is_asked_for_in_parts(
    tmp_path, make_post
) -> None:
    count, most = 250, 1000
    everything = [
        {"antecedent_name": f"once_{n}_{k}", "consequent_name": f"artist_{n}"}
        for n in range(count)
        for k in range(12 if n < 100 else 1)
    ]
    sizes = []

    def ask(question: Question) -> object:
        names = question.parameters["search[consequent_name_comma]"].split(",")
        sizes.append(len(names))
        return [row for row in everything if row["consequent_name"] in names][:most]

    with Store(tmp_path / "posts.sqlite", "danbooru") as store:
        for number in range(count):
            store.save_post(make_post(number + 1, tags={"artist": (f"artist_{number}",)}))
        aliases = Aliases(store, ask, dialect_of("danbooru"))
        assert aliases.learn(Silent(), "x")
        rows = store.db.execute("SELECT former, name FROM alias").fetchall()
        assert set(rows) == {(row["antecedent_name"], row["consequent_name"]) for row in everything}
        assert max(sizes) == 100 and sum(sizes) >= count
        asked_so_far = len(sizes)
        assert not aliases.learn(Silent(), "x") and len(sizes) == asked_so_far
        assert not aliases.learn(Silent(), "x", before="9999")  # Asked again, nothing is new.
        assert len(sizes) == 2 * asked_so_far


@pytest.mark.parametrize(
    ("site", "content"),
    [
        ("danbooru", {"success": True}),
        ("danbooru", [{"antecedent_name": "a"}]),
        ("e621", {"posts": []}),
        ("e621", ["a"]),
        ("yandere", {"version": 1}),
        ("yandere", {"data": "1`a` nonsense "}),
    ],
)
def test_what_is_no_list_of_aliases_is_refused(site: str, content: object) -> None:
    with pytest.raises(Malformed):
        dialect_of(site).read_aliases(content)


def test_empty_lists_and_summaries_are_read() -> None:
    assert dialect_of("e621").read_aliases({"tag_aliases": []}) == []
    assert dialect_of("danbooru").read_aliases([]) == []
    summary = {"version": 3, "data": "1`a` 0`b`c`d` "}
    assert dialect_of("yandere").read_aliases(summary) == [("c", "b"), ("d", "b")]
