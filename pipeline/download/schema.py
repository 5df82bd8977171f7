"""The tables of posts.sqlite, and opening a file of them.

Simpler than the full sketch of a booru mirror where a dataset needs less: one file per dataset, so
the site is a column and no table; a file's verified facts are columns of its job; what a post said
earlier is a row only where it changed. The raw JSON of each post is kept: whatever a later version
wants, it can read again, and a migration does.
"""

import json
import sqlite3
import zlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import UrushiError

VERSION = 3
"""PRAGMA user_version. Raised, with a migration, when a table changes."""
APPLICATION = 0x75727573
"""PRAGMA application_id: "urus"."""

TABLES = """
CREATE TABLE post (
    site TEXT NOT NULL,
    post_id INTEGER NOT NULL,
    md5 TEXT,                    -- NULL where the site hides the file
    extension TEXT NOT NULL,
    bytes INTEGER,
    width INTEGER NOT NULL,      -- pixels, as the site states them; 0 where it does not
    height INTEGER NOT NULL,
    rating TEXT NOT NULL,        -- general, sensitive, questionable, explicit, unknown
    score INTEGER,               -- net
    status TEXT NOT NULL,        -- active, pending, flagged, deleted, banned, missing
    file_url TEXT,
    source_url TEXT NOT NULL,
    parent_id INTEGER,
    created_at TEXT NOT NULL,
    fetched_at TEXT NOT NULL,    -- when the site last said all this
    uploader TEXT NOT NULL DEFAULT '',
    source_hosts TEXT NOT NULL DEFAULT '',  -- of source_url, separated by spaces
    pixel_hash TEXT,             -- the site's digest of the decoded pixels
    animated INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (site, post_id)
) WITHOUT ROWID;
CREATE INDEX post_md5 ON post (md5);

CREATE TABLE post_raw (
    site TEXT NOT NULL,
    post_id INTEGER NOT NULL,
    json BLOB NOT NULL,          -- zlib
    PRIMARY KEY (site, post_id),
    FOREIGN KEY (site, post_id) REFERENCES post
);

CREATE TABLE tag (
    tag_id INTEGER PRIMARY KEY,
    site TEXT NOT NULL,
    name TEXT NOT NULL,
    category TEXT NOT NULL,      -- general, character, copyright, artist, meta, unknown
    UNIQUE (site, name)
);

CREATE TABLE post_tag (          -- artists too: captions leave them out, attribution needs them
    site TEXT NOT NULL,
    post_id INTEGER NOT NULL,
    position INTEGER NOT NULL,   -- the site's order within a category
    tag_id INTEGER NOT NULL REFERENCES tag,
    PRIMARY KEY (site, post_id, position),
    FOREIGN KEY (site, post_id) REFERENCES post
) WITHOUT ROWID;
CREATE INDEX post_tag_tag ON post_tag (tag_id);

CREATE TABLE job (               -- one file, wanted by one post or by several
    md5 TEXT PRIMARY KEY,
    state TEXT NOT NULL,         -- planned, have, gone, hidden, refused, bad_content, failed
    reason TEXT NOT NULL,
    attempts INTEGER NOT NULL,   -- requests for it that did not end in the file
    extension TEXT,              -- by its bytes; set with "have", as are the next three
    bytes INTEGER,
    width INTEGER,               -- pixels, after the EXIF turn
    height INTEGER,
    settled_at TEXT,
    pixels TEXT,                 -- our md5 of the decoded RGBA pixels; set when it was decoded
    likeness INTEGER,            -- 64 bits of perceptual hash, as a signed number; set with pixels
    examined_at TEXT             -- when it was decoded to its last row; NULL: not yet
) WITHOUT ROWID;

CREATE TABLE crawl (             -- one search and how far it has been read
    crawl_id INTEGER PRIMARY KEY,
    site TEXT NOT NULL,
    query TEXT NOT NULL,
    cursor INTEGER,              -- ids below are still to be read; NULL before the first page
    finished INTEGER NOT NULL,
    estimate INTEGER,            -- the site's own count, for the bar
    started_at TEXT NOT NULL,
    refreshing TEXT,             -- when a refresh began that has not come to its end
    UNIQUE (site, query)
);

CREATE TABLE crawl_post (        -- which posts a search showed
    crawl_id INTEGER NOT NULL REFERENCES crawl,
    post_id INTEGER NOT NULL,
    PRIMARY KEY (crawl_id, post_id)
) WITHOUT ROWID;
"""

LATER = """
CREATE INDEX post_pixels ON post (pixel_hash, md5) WHERE pixel_hash IS NOT NULL;
CREATE INDEX post_uploader ON post (uploader);
CREATE INDEX post_hosts ON post (source_hosts);
CREATE INDEX tag_unknown ON tag (tag_id) WHERE category = 'unknown';
CREATE INDEX job_pixels ON job (pixels) WHERE pixels IS NOT NULL;
CREATE INDEX job_unexamined ON job (md5) WHERE state = 'have' AND examined_at IS NULL;

CREATE TABLE post_history (      -- what a post said before it said something else
    history_id INTEGER PRIMARY KEY,
    site TEXT NOT NULL,
    post_id INTEGER NOT NULL,
    seen_at TEXT NOT NULL,       -- when it was last seen to say so
    score INTEGER,
    rating TEXT NOT NULL,
    status TEXT NOT NULL,
    md5 TEXT
);
CREATE INDEX post_history_post ON post_history (site, post_id);
CREATE TRIGGER post_changed BEFORE UPDATE ON post
WHEN old.score IS NOT new.score OR old.rating <> new.rating OR old.status <> new.status
    OR old.md5 IS NOT new.md5
BEGIN
    INSERT INTO post_history (site, post_id, seen_at, score, rating, status, md5) VALUES
        (old.site, old.post_id, old.fetched_at, old.score, old.rating, old.status, old.md5);
END;

CREATE TABLE left_out (          -- files that an exclusion keeps out, as the last export decided
    md5 TEXT PRIMARY KEY,
    rule TEXT NOT NULL,          -- "artist some_name"
    origin TEXT NOT NULL,        -- "[exclude].artists", or a list and its line
    decided_at TEXT NOT NULL     -- when this rule first decided it
) WITHOUT ROWID;
"""
"""What version 2 added beside columns."""

FORMER_NAMES = """
ALTER TABLE tag ADD COLUMN aliases_at TEXT;  -- when it was asked what an artist was called; or NULL
CREATE INDEX tag_unasked ON tag (site, name) WHERE category = 'artist' AND aliases_at IS NULL;

CREATE TABLE alias (             -- what artists' tags were called before
    site TEXT NOT NULL,
    name TEXT NOT NULL,
    former TEXT NOT NULL,
    PRIMARY KEY (site, name, former)
) WITHOUT ROWID;
CREATE INDEX alias_former ON alias (site, former);
"""
"""What version 3 added."""

COLUMNS_OF_2 = """
ALTER TABLE post ADD COLUMN uploader TEXT NOT NULL DEFAULT '';
ALTER TABLE post ADD COLUMN source_hosts TEXT NOT NULL DEFAULT '';
ALTER TABLE post ADD COLUMN pixel_hash TEXT;
ALTER TABLE post ADD COLUMN animated INTEGER NOT NULL DEFAULT 0;
ALTER TABLE job ADD COLUMN pixels TEXT;
ALTER TABLE job ADD COLUMN likeness INTEGER;
ALTER TABLE job ADD COLUMN examined_at TEXT;
ALTER TABLE crawl ADD COLUMN refreshing TEXT;
"""


def connect(path: Path) -> sqlite3.Connection:
    """An open store; its tables are made if the file is new.

    Raises:
        sqlite3.Error: the file cannot be opened, read or written.
        UrushiError: it is a database of another program, or of a later version of this one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, isolation_level=None, timeout=30)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = ON")
        _prepare(db, path)
    except BaseException:
        db.close()
        raise
    return db


def source_hosts(source_url: str) -> str:
    """The hosts that a post's sources name, one URL a line, for exclusions by domain."""
    hosts = []
    for line in source_url.splitlines():
        try:
            hosts.append((urlsplit(line.strip()).hostname or "").rstrip("."))
        except ValueError:  # "http://[" and the like: people type sources.
            continue
    return " ".join(sorted({host for host in hosts if host}))


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    application = db.execute("PRAGMA application_id").fetchone()[0]
    if version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        db.executescript(
            f"BEGIN; {TABLES} {LATER} {FORMER_NAMES} PRAGMA user_version = {VERSION};"
            f" PRAGMA application_id = {APPLICATION}; COMMIT;"
        )
    elif application != APPLICATION:
        raise UrushiError(f"{path} is a database of another program. Move it out of the workspace.")
    elif version in (1, 2):
        _migrate(db, version)
    elif version != VERSION:
        raise UrushiError(
            f"{path} was written by another version of urushi (schema {version}, this one knows "
            f"{VERSION}). Use that version, or move the file away: pictures stay and are taken up "
            "again, posts are asked for anew."
        )


def _migrate(db: sqlite3.Connection, version: int) -> None:
    """An older version into this one, whole or not at all."""
    db.execute("BEGIN IMMEDIATE")
    try:
        if version == 1:
            _from_1(db)
        for statement in _statements(FORMER_NAMES):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _from_1(db: sqlite3.Connection) -> None:
    """Version 1 into 2: new columns filled from the raw JSON of each post.

    An exclusion by uploader or domain must fit posts that were read before there were exclusions.
    Files that were decoded when they came have no likeness yet, and are looked at again for it.
    """
    for statement in COLUMNS_OF_2.split(";"):
        db.execute(statement)
    said = [
        (*_said(source, raw), site, post_id)
        for site, post_id, source, raw in db.execute(
            "SELECT site, post_id, source_url, json FROM post JOIN post_raw USING (site, post_id)"
        )
    ]
    db.executemany(
        "UPDATE post SET uploader = ?, source_hosts = ?, pixel_hash = ?, animated = ?"
        " WHERE site = ? AND post_id = ?",
        said,
    )
    for statement in _statements(LATER):
        db.execute(statement)


def _said(source_url: str, raw: bytes) -> tuple[str, str, str | None, bool]:
    """Uploader, hosts, pixel hash and whether it moves, of a Danbooru post: 1 read no others."""
    post: dict[str, Any] = json.loads(zlib.decompress(raw))
    asset = post.get("media_asset") or {}
    return (
        str(post.get("uploader_id") or ""),
        source_hosts(source_url),
        asset.get("pixel_hash"),
        bool(asset.get("duration")),
    )


def _statements(script: str) -> list[str]:
    """The statements of a script; those of a trigger's body stay together."""
    found: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    return found
