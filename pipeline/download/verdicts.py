"""Rules into verdicts on posts, in SQLite: which files are barred, and why a post is not taken.

A verdict is asked for a million posts at once, so it is an expression that SQLite works out, over
temporary tables that say what is barred. Nothing of it is kept but by whoever writes it down.
"""

from collections.abc import Iterator

from pipeline.download.header import EXTENSIONS
from pipeline.download.posts import UNAVAILABLE, UNKNOWN
from pipeline.download.rules import KINDS, Exclusion, Kind, Rules
from pipeline.download.store import Store

TEMPORARY = """
CREATE TEMP TABLE IF NOT EXISTS rule (kind TEXT, pattern TEXT, origin TEXT,
    label TEXT);
CREATE TEMP TABLE IF NOT EXISTS excluded (md5 TEXT PRIMARY KEY, rule TEXT, origin TEXT)
    WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS untold (post_id INTEGER PRIMARY KEY);
CREATE TEMP TABLE IF NOT EXISTS host (domain TEXT, hosts TEXT);
"""

POSTS_BY: dict[Kind, str] = {
    "md5": "JOIN post p ON p.md5 = r.pattern",
    "post": "JOIN post p ON p.site = ? AND p.post_id = CAST(r.pattern AS INTEGER)",
    "artist": "JOIN tag t ON t.site = ? AND t.name = r.pattern JOIN post_tag USING (tag_id)"
    " JOIN post p USING (site, post_id)",
    "uploader": "JOIN post p ON p.uploader = r.pattern",
    "domain": "JOIN temp.host h ON h.domain = r.pattern JOIN post p ON p.source_hosts = h.hosts",
}
"""From a rule to the posts that it means. An artist's name is barred as a tag of any category: what
one site files under artists another files under circles."""
POSTS_BY["tag"] = POSTS_BY["artist"]

HIDDEN = "hidden: the site does not show its file"
UNTOLD = "tags of unknown kind: an artist's name may be among them"


def verdict(rules: Rules) -> str:
    """An SQL expression over a post p: NULL where it is taken, else why not."""
    ratings = ", ".join(f"'{rating}'" for rating in rules.ratings)
    gone = ", ".join(f"'{status}'" for status in UNAVAILABLE)
    types = ", ".join(f"'{extension}'" for extension in EXTENSIONS)
    cases = [
        (f"p.status IN ({gone})", "'gone: its post is ' || p.status"),
        (f"p.rating NOT IN ({ratings})", "'rating: ' || p.rating"),
        ("p.md5 IS NULL OR p.status = 'banned'", _quoted(HIDDEN)),
        ("p.animated", "'moves: a video or an animation'"),
        (f"p.extension NOT IN ({types})", "'format: ' || p.extension || ' is not taken'"),
        (
            "p.width * p.height > " + str(rules.most_pixels),
            f"'size: more than {rules.most_pixels:,} pixels'",
        ),
        (
            "EXISTS (SELECT 1 FROM temp.excluded e WHERE e.md5 = p.md5)",
            "(SELECT 'excluded: ' || e.rule FROM temp.excluded e WHERE e.md5 = p.md5)",
        ),
        ("p.post_id IN (SELECT post_id FROM temp.untold)", _quoted(UNTOLD)),
    ]
    if rules.least_score is not None:
        low = f"coalesce(p.score < {rules.least_score}, TRUE)"
        cases.append((low, f"'score: below {rules.least_score}'"))
    return "CASE " + " ".join(f"WHEN {test} THEN {why}" for test, why in cases) + " END"


def judge(store: Store, rules: Rules) -> None:
    """Fills temp.excluded and temp.untold from all posts of the store.

    A file is excluded whichever of its posts a rule fits, and with it every file of equal pixels.
    """
    with store.transaction(temporary=True) as db:
        for statement in TEMPORARY.split(";"):
            db.execute(statement)
        for name in ("rule", "excluded", "untold", "host"):
            db.execute(f"DELETE FROM temp.{name}")
        rows = [(one.kind, one.pattern, one.origin, str(one)) for one in rules.exclusions]
        db.executemany("INSERT INTO temp.rule VALUES (?, ?, ?, ?)", rows)
        for renamed in RENAMED:
            db.execute(renamed, (store.site,))
        db.executemany("INSERT INTO temp.host VALUES (?, ?)", _hosts(store, rules.exclusions))
        for kind in KINDS:
            db.execute(
                "INSERT OR IGNORE INTO temp.excluded"
                " SELECT p.md5, r.label, r.origin FROM temp.rule r"
                f" {POSTS_BY[kind]} WHERE r.kind = '{kind}' AND p.md5 IS NOT NULL"
                " ORDER BY r.rowid",
                (store.site,) * POSTS_BY[kind].count("?"),
            )
        for pixels in SAME_PIXELS:
            db.execute(
                "INSERT OR IGNORE INTO temp.excluded"
                f" SELECT o.md5, e.rule || ', same pixels', e.origin FROM temp.excluded e {pixels}"
            )
        db.execute(
            "INSERT OR IGNORE INTO temp.untold SELECT post_id FROM tag JOIN post_tag USING (tag_id)"
            f" WHERE tag.site = ? AND category = '{UNKNOWN}'",
            (store.site,),
        )


SAME_PIXELS = (
    "CROSS JOIN post p ON p.md5 = e.md5 CROSS JOIN post o ON o.pixel_hash = p.pixel_hash"
    " WHERE o.md5 IS NOT NULL",
    "CROSS JOIN job j ON j.md5 = e.md5 CROSS JOIN job o ON o.pixels = j.pixels",
)
"""By the site's digest, and by ours of what was decoded. CROSS: in this order, from the few."""


RENAMED = (
    "INSERT INTO temp.rule SELECT r.kind, a.name, r.origin, r.label || ', now ' || a.name"
    " FROM temp.rule r JOIN alias a ON a.site = ? AND a.former = r.pattern"
    " WHERE r.kind IN ('artist', 'tag')",
    "INSERT INTO temp.rule SELECT r.kind, a.former, r.origin, r.label || ', once ' || a.former"
    " FROM temp.rule r JOIN alias a ON a.site = ? AND a.name = r.pattern"
    " WHERE r.kind IN ('artist', 'tag')",
)
"""From a name to the one of today, and from both to all former ones: a post that was not read since
still has the name of its day."""


def _hosts(store: Store, exclusions: tuple[Exclusion, ...]) -> Iterator[tuple[str, str]]:
    """(domain, what stands in a post's source_hosts) for every domain that is excluded."""
    domains = [one.pattern for one in exclusions if one.kind == "domain"]
    if not domains:
        return
    for (hosts,) in store.db.execute("SELECT DISTINCT source_hosts FROM post").fetchall():
        for domain in domains:
            if any(host == domain or host.endswith("." + domain) for host in hosts.split()):
                yield domain, hosts


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
