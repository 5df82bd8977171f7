"""Keys: where they come from, to whom they go, and that nothing else ever shows them."""

import logging
import os
import pickle
import traceback
from pathlib import Path

import pytest

from demo.booru import running
from demo.booru_faults import Fault
from demo.corpus import Corpus
from pipeline.download.credentials import Credentials
from pipeline.download.sites import site_of
from pipeline.errors import RequestError, UrushiError
from pipeline.recipe.dataset import Download

SECRET = "s3cr3t+/k3y=="
LOGIN = "somebody"
FIELDS = {"danbooru": "LOGIN", "gelbooru": "USER_ID", "e621": "LOGIN"}


@pytest.fixture(params=["danbooru", "gelbooru", "e621"])
def site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A site whose key is in the environment."""
    name = str(request.param)
    monkeypatch.setenv(f"URUSHI_{name.upper()}_{FIELDS[name]}", LOGIN)
    monkeypatch.setenv(f"URUSHI_{name.upper()}_API_KEY", SECRET)
    return name


def ratings(site: str) -> list[str]:
    return ["sensitive"] if site == "e621" else ["general"]


def shows(text: str | bytes) -> bool:
    """Whether the secret is in there, as it is or as an address spells it."""
    content = text.encode() if isinstance(text, str) else text
    return any(form in content for form in (SECRET.encode(), b"s3cr3t%2B", b"c29tZWJvZHk6czNj"))


def everything_below(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


def test_a_key_opens_the_site_and_is_written_nowhere(
    downloading, corpus: Corpus, site: str, caplog, capfd, told
) -> None:
    caplog.set_level(logging.DEBUG)
    with running(corpus=corpus, family=site) as booru:
        booru.account = (LOGIN, SECRET)
        downloading.write(booru.url, site=site, ratings=ratings(site))
        downloading.run(told)
        assert set(downloading.images()) >= corpus.wanted()
        api = [hit for hit in booru.hits if hit.kind in ("page", "tags")]
        assert api
        assert all(shows(hit.path) or shows(str(hit.headers)) for hit in api)
        files = [hit for hit in booru.hits if hit.kind == "file"]
        assert files
        assert not any(shows(hit.path) or shows(str(hit.headers)) for hit in files)
    assert "GET /" in caplog.text  # The HTTP library did log.
    assert not shows(caplog.text)
    assert not shows("".join(told.lines))
    assert not shows("".join(capfd.readouterr()))
    assert not any(shows(content) for content in everything_below(downloading.folder.root))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(cut=0), id="connection closed"),
        pytest.param(
            Fault(status=401, body=f'{{"message": "bad key {SECRET}"}}'.encode()), id="401"
        ),
        pytest.param(Fault(status=500, body=f'{{"message": "{SECRET}"}}'.encode()), id="500"),
        pytest.param(Fault(status=302, headers={"Location": f"/x?api_key={SECRET}"}), id="302"),
        pytest.param(Fault(body=b"<html>"), id="no API"),
        pytest.param(
            Fault(body=f'<response success="false" reason="{SECRET}"/>'.encode()), id="in XML"
        ),
    ],
)
def test_no_error_shows_the_key(
    downloading, corpus: Corpus, site: str, fault: Fault, caplog
) -> None:
    caplog.set_level(logging.DEBUG)
    with running(corpus=corpus, family=site, faults=lambda hit: fault) as booru:
        downloading.write(booru.url, site=site, ratings=ratings(site))
        with pytest.raises(UrushiError) as caught:
            downloading.run()
    # With every frame's variables, as some loggers print them; without this function's own.
    assert caught.value.__traceback__ is not None
    caught.value.__traceback__ = caught.value.__traceback__.tb_next
    told = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert not shows("".join(told.format()))
    error: BaseException | None = caught.value
    while error is not None:
        assert not shows(repr(error))
        assert not hasattr(error, "request")
        error = error.__cause__ or error.__context__
    assert not shows(caplog.text)


def test_nothing_shows_or_stores_what_it_holds() -> None:
    credentials = Credentials("header", {"login": LOGIN, "api_key": SECRET})
    assert repr(credentials) == str(credentials) == "Credentials(login, api_key)"
    with pytest.raises(TypeError, match="not to be stored"):
        pickle.dumps(credentials)


def keys(folder: Path, text: str, mode: int = 0o600) -> dict[str, str]:
    path = folder / "keys.toml"
    path.write_text(text)
    path.chmod(mode)
    return {"URUSHI_KEYS": str(path)}


def asked(site: str = "gelbooru", **settings: str) -> Download:
    return Download(site=site, tags="a", contact="user me", **settings)


def test_a_key_file_is_read_if_it_is_ones_own(tmp_path: Path) -> None:
    text = f'[gelbooru]\nuser_id = "7"\napi_key = "{SECRET}"\n'
    site = site_of(asked(), keys(tmp_path, text))
    assert dict(site.credentials.values) == {"user_id": "7", "api_key": SECRET}
    assert not shows(repr(site))
    for mode in (0o640, 0o604, 0o644):
        with pytest.raises(RequestError, match="chmod 600") as caught:
            site_of(asked(), keys(tmp_path, text, mode))
        assert not shows(str(caught.value))
    own = {"XDG_CONFIG_HOME": str(tmp_path)}
    (tmp_path / "urushi").mkdir()
    os.rename(tmp_path / "keys.toml", tmp_path / "urushi" / "keys.toml")
    (tmp_path / "urushi" / "keys.toml").chmod(0o600)
    assert site_of(asked(), own).credentials
    assert (
        site_of(asked(), own | {"URUSHI_GELBOORU_USER_ID": "8"}).credentials.values["user_id"]
        == "8"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'[gelbooru]\napi_key = "{SECRET}"', "has no user_id"),
        (f"[gelbooru]\napi_key = {SECRET}", "is not TOML"),
        (f'gelbooru = "{SECRET}"', "should be a table"),
        ("", "answers no one without a key"),
    ],
)
def test_half_a_key_and_odd_files_are_named_without_the_key(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        site_of(asked(), keys(tmp_path, text))
    told = traceback.TracebackException.from_exception(caught.value)
    assert not shows("".join(told.format()))
    with pytest.raises(RequestError, match="not there"):
        site_of(asked(), {"URUSHI_KEYS": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("host", "own", "goes"),
    [
        ("https://gelbooru.com", "", True),
        ("https://img.gelbooru.com", "", True),
        ("http://127.0.0.1:8000", "", True),
        ("https://gelbooru.com.evil.example", "", False),
        ("https://evil.example", "", False),
        ("http://10.0.0.3", "", False),
        ("https://booru.example", "https://booru.example", True),
        ("https://booru.example", "booru.example", True),
        ("https://evil.example", "booru.example", False),
        ("https://gelbooru.com", "booru.example", False),
    ],
)
def test_a_recipe_cannot_send_a_key_to_where_its_author_likes(
    host: str, own: str, goes: bool
) -> None:
    environment = {"URUSHI_GELBOORU_USER_ID": "7", "URUSHI_GELBOORU_API_KEY": SECRET}
    environment |= {"XDG_CONFIG_HOME": "/nonexistent", "URUSHI_GELBOORU_HOST": own}
    try:
        assert bool(site_of(asked(host=host), environment).credentials) == goes
    except RequestError as error:
        assert "without a key" in str(error)
        assert not goes


def test_a_key_does_not_go_in_the_clear() -> None:
    environment = {"URUSHI_DANBOORU_LOGIN": LOGIN, "URUSHI_DANBOORU_API_KEY": SECRET}
    with pytest.raises(RequestError, match="in the clear"):
        site_of(asked("danbooru", host="http://danbooru.donmai.us"), environment)
