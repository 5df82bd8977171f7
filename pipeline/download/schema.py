"""The tables of posts.sqlite, and opening a file of them.

Simpler than the full sketch of a booru mirror where a dataset needs less: one file per dataset, so
the site is a column and no table; score history, exclusions and versions have no rows yet and so no
tables. The raw JSON of each post is kept: whatever a later version wants, it can read again.
"""

import sqlite3
from pathlib import Path

from pipeline.errors import UrushiError

VERSION = 1
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
    fetched_at TEXT NOT NULL,
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
    category TEXT NOT NULL,      -- general, character, copyright, artist, meta
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
    settled_at TEXT
) WITHOUT ROWID;

CREATE TABLE crawl (             -- one search and how far it has been read
    crawl_id INTEGER PRIMARY KEY,
    site TEXT NOT NULL,
    query TEXT NOT NULL,
    cursor INTEGER,              -- ids below are still to be read; NULL before the first page
    finished INTEGER NOT NULL,
    estimate INTEGER,            -- the site's own count, for the bar
    started_at TEXT NOT NULL,
    UNIQUE (site, query)
);

CREATE TABLE crawl_post (        -- which posts a search showed
    crawl_id INTEGER NOT NULL REFERENCES crawl,
    post_id INTEGER NOT NULL,
    PRIMARY KEY (crawl_id, post_id)
) WITHOUT ROWID;
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


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    application = db.execute("PRAGMA application_id").fetchone()[0]
    if version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        db.executescript(
            f"BEGIN; {TABLES} PRAGMA user_version = {VERSION};"
            f" PRAGMA application_id = {APPLICATION}; COMMIT;"
        )
    elif application != APPLICATION:
        raise UrushiError(f"{path} is a database of another program. Move it out of the workspace.")
    elif version != VERSION:
        raise UrushiError(
            f"{path} was written by another version of urushi (schema {version}, this one knows "
            f"{VERSION}). Use that version, or move the file away: pictures stay and are taken up "
            "again, posts are asked for anew."
        )
