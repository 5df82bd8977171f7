"""The embedded booru answers as Danbooru does, its limits and oddities included."""

import base64
import hashlib
import threading
from dataclasses import replace
from typing import Any

import pytest
import requests

from demo.booru import BooruServer, running
from demo.booru_faults import Fault
from demo.booru_posts import file_path
from demo.booru_query import QueryError, parse
from demo.corpus import Corpus
from pipeline.errors import RequestError

GENERAL = "maki-e_box rating:g -status:deleted filetype:jpg,png,webp"


def get(session: requests.Session, booru: BooruServer, path: str, **parameters: Any) -> Any:
    response = session.get(booru.url + path, params=parameters)
    assert response.headers["Content-Type"].startswith("application/json")
    return response.json()


def ids(posts: list[dict[str, Any]]) -> list[int]:
    return [post["id"] for post in posts]


def test_pages_are_newest_first_and_limited(
    booru: BooruServer, session: requests.Session, corpus: Corpus
) -> None:
    newest = [post.id for post in reversed(corpus.posts)]
    assert ids(get(session, booru, "/posts.json")) == newest[:20]
    assert ids(get(session, booru, "/posts.json", limit=500)) == newest
    assert ids(get(session, booru, "/posts.json", limit=0)) == newest[:1]
    assert ids(get(session, booru, "/posts.json", limit=3, page=2)) == newest[3:6]
    assert ids(get(session, booru, "/posts.json", tags="limit:2")) == newest[:2]


def test_no_page_holds_more_than_two_hundred(
    booru: BooruServer, session: requests.Session, corpus: Corpus
) -> None:
    post = corpus.posts[0]
    booru.posts = {post.id + n: replace(post, id=post.id + n) for n in range(300)}
    assert len(get(session, booru, "/posts.json", limit=500)) == 200


def test_cursors_force_the_order_of_ids(
    booru: BooruServer, session: requests.Session, corpus: Corpus
) -> None:
    rising = [post.id for post in corpus.posts]
    middle = rising[100]
    below = get(session, booru, "/posts.json", page=f"b{middle}", limit=3, tags="order:score")
    assert ids(below) == rising[99:96:-1]
    # An ascending cursor chooses the next ones up, but shows them newest first.
    above = get(session, booru, "/posts.json", page=f"a{middle}", limit=3)
    assert ids(above) == rising[103:100:-1]
    assert get(session, booru, "/posts.json", page=f"b{rising[0]}") == []


def test_a_crawl_by_cursor_sees_every_match_once(
    booru: BooruServer, session: requests.Session, corpus: Corpus
) -> None:
    seen: list[int] = []
    cursor = ""
    while page := get(session, booru, "/posts.json", tags=GENERAL, limit=50, page=cursor):
        seen += ids(page)
        cursor = f"b{seen[-1]}"
    expected = [
        post.id
        for post in reversed(corpus.posts)
        if post.rating == "g" and not post.is_deleted and post.extension in ("jpg", "png", "webp")
    ]
    assert seen == expected


def test_hidden_posts_lack_the_keys_of_their_file(
    booru: BooruServer, session: requests.Session, corpus: Corpus
) -> None:
    hidden = next(post for post in corpus.posts if post.flaw == "hidden")
    shown = next(post for post in corpus.posts if post.flaw is None)
    keys = {"md5", "file_url", "large_file_url", "preview_file_url"}
    assert not keys & set(get(session, booru, f"/posts/{hidden.id}.json"))
    post = get(session, booru, f"/posts/{shown.id}.json")
    assert keys <= set(post)
    assert post["score"] == post["up_score"] + post["down_score"]
    assert session.get(booru.url + file_path(hidden)).status_code == 404
    assert session.get(booru.url + file_path(shown)).status_code == 200


def test_by_md5_gives_one_object(
    booru: BooruServer, session: requests.Session, corpus: Corpus
) -> None:
    post = next(post for post in corpus.posts if post.flaw is None)
    assert get(session, booru, "/posts.json", md5=post.md5)["id"] == post.id
    missing = session.get(booru.url + "/posts.json", params={"md5": "0" * 32})
    assert (missing.status_code, missing.json()["success"]) == (404, False)


def test_files_are_the_corpus(
    booru: BooruServer, session: requests.Session, corpus: Corpus
) -> None:
    post = next(post for post in corpus.posts if post.flaw is None)
    url = get(session, booru, f"/posts/{post.id}.json", only="file_url,md5,nothing")
    assert set(url) == {"file_url", "md5"}
    content = session.get(url["file_url"]).content
    assert hashlib.md5(content).hexdigest() == post.md5


@pytest.mark.parametrize(
    ("parameters", "status"),
    [
        ({"tags": "a b c"}, 422),
        ({"tags": "a b order:score"}, 422),
        ({"tags": "source:x"}, 422),
        ({"tags": "rating:z"}, 422),
        ({"tags": "id:x"}, 422),
        ({"page": "1001"}, 410),
        ({"page": "x"}, 400),
        ({"login": "me"}, 401),
    ],
)
def test_errors_are_json_with_the_sites_status(
    booru: BooruServer, session: requests.Session, parameters: dict[str, str], status: int
) -> None:
    response = session.get(booru.url + "/posts.json", params=parameters)
    assert response.status_code == status
    body = response.json()
    assert body["success"] is False and body["message"] and body["backtrace"] == []


@pytest.mark.parametrize("agent", ["", "Mozilla/5.0 (X11)", "python-requests/2", "aiohttp/3"])
def test_clients_that_do_not_say_who_they_are_are_challenged(
    booru: BooruServer, session: requests.Session, agent: str
) -> None:
    response = session.get(booru.url + "/posts.json", headers={"User-Agent": agent})
    assert (response.status_code, response.headers["cf-mitigated"]) == (403, "challenge")


def test_counts_and_tags(booru: BooruServer, session: requests.Session, corpus: Corpus) -> None:
    counts = get(session, booru, "/counts/posts.json", tags="score:>=60 rating:g")
    expected = sum(post.score >= 60 and post.rating == "g" for post in corpus.posts)
    assert counts == {"counts": {"posts": expected}}
    rows = get(session, booru, "/tags.json", **{"search[name_comma]": "kinpun,kinpun_(style)"})
    assert {row["name"]: row["category"] for row in rows} == {"kinpun": 1, "kinpun_(style)": 0}


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("{artist}", True),
        ("-{artist}", False),
        ("{artist} rating:general,explicit", True),
        ("rating:s,q,e", False),
        ("id:{id}", True),
        ("id:..{id}", True),
        ("id:>{id}", False),
        ("id:1,2,{id}", True),
        ("score:{score}..{score}", True),
        ("-score:<={score}", False),
        ("md5:{md5}", True),
        ("maki-*", True),
        ("status:deleted", False),
        ("filetype:gif,mp4", False),
        ("", True),
    ],
)
def test_searches(corpus: Corpus, text: str, matches: bool) -> None:
    post = next(post for post in corpus.posts if post.flaw is None and post.rating == "g")
    filled = text.format(id=post.id, md5=post.md5, score=post.score, artist=post.tags["artist"][0])
    assert parse(filled).matches(post) is matches


def test_unknown_metatags_are_refused_by_name() -> None:
    with pytest.raises(QueryError, match="pixiv_id"):
        parse("pixiv_id:5")


def test_requests_are_counted_and_faults_happen_to_the_chosen_one(
    corpus: Corpus, session: requests.Session
) -> None:
    def twice(hit: Any) -> Fault | None:
        return Fault(status=500, body=b"no") if hit.kind == "count" and hit.nth < 3 else None

    with running(corpus=corpus, faults=twice) as booru:
        answers = [session.get(booru.url + "/counts/posts.json").status_code for _ in range(3)]
        assert answers == [500, 500, 200]
        assert (booru.count("count"), booru.count("page"), booru.count()) == (3, 0, 3)
        assert [hit.nth for hit in booru.hits] == [1, 2, 3]


def test_a_cut_answer_breaks_off(corpus: Corpus, session: requests.Session) -> None:
    with (
        running(corpus=corpus, faults=lambda hit: Fault(cut=10)) as booru,
        pytest.raises(requests.RequestException),
    ):
        session.get(booru.url + "/posts.json")


def test_it_stops_and_leaves_no_thread(corpus: Corpus, session: requests.Session) -> None:
    with running(corpus=corpus) as booru:
        port = int(booru.url.rpartition(":")[2])
        with (
            pytest.raises(RequestError, match=f"{port}.*another --port"),
            running(port, corpus=corpus),
        ):
            pass
        assert session.get(booru.url + "/posts.json").status_code == 200
    assert not [thread for thread in threading.enumerate() if thread.name == "booru"]
    with running(port, corpus=corpus) as again:
        assert again.url == booru.url


def test_accounts_are_refused_rather_than_ignored(
    booru: BooruServer, session: requests.Session
) -> None:
    header = "Basic " + base64.b64encode(b"me:key").decode()
    response = session.get(booru.url + "/posts.json", headers={"Authorization": header})
    assert response.status_code == 401
