"""A store of a million posts: what a download costs that finds nothing to do, and a selection.

    python benchmarks/store.py [--quick] [--json FILE] [--work DIR]

Makes a posts.sqlite of synthetic posts through the schema of the program, a search that showed all
of them, and the 50,000 files that it takes (a byte each). Each figure is of a process of its own:

noop_s    seconds of `urushi download`, from start to end, where everything is done
again_s   the same where the receipt is lost, so that all is decided anew and written again
select_s  seconds to choose 50,000 files by rating, score and exclusions, and to read them
rss_mb    peak memory of the largest of these processes

--quick is the same with 100,000 posts and 5,000 files.
"""

import argparse
import hashlib
import json
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

# A script's own folder comes first, and files there are called what rooms are.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))

import numpy as np

from pipeline.artefacts.job import load_job
from pipeline.artefacts.receipts import NAME
from pipeline.download.choice import Choice
from pipeline.download.rules import rules_of
from pipeline.download.schema import connect
from pipeline.download.sites import dialect_of
from pipeline.download.store import Store
from pipeline.recipe.dataset import Download

POSTS, FILES = 1_000_000, 50_000
QUICK_POSTS, QUICK_FILES = 100_000, 5_000
TAGS, ARTISTS, HOSTS, UPLOADERS = 20_000, 50_000, 2_000, 5_000
"""Different ones. Tags are drawn as often as their rank has it, as on a booru."""
TAGS_EACH = 9
RATINGS = ("general", "sensitive", "questionable", "explicit")
SHARES = (0.6, 0.25, 0.1, 0.05)
LEAST_SCORE = 6

RECIPE = """\
name = "million"

[download]
site = "danbooru"
host = "http://127.0.0.1:9"    # Nothing listens there: whoever asks, fails.
tags = "many"
limit = {files}
least_score = {least}

[exclude]
artists = ["artist_7", "artist_49999"]
tags = ["tag_3"]
uploaders = ["user_1"]
domains = ["host5.example", "host77.example"]
posts = [5, 6, 7]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--select", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.select is not None:
        sys.stdout.write(json.dumps(select(arguments.select)))
        return
    posts, files = (QUICK_POSTS, QUICK_FILES) if arguments.quick else (POSTS, FILES)
    with tempfile.TemporaryDirectory(dir=arguments.work) as place:
        figures = measure(Path(place), posts, files)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        sys.stdout.write(f"{name:<12}{value:>12,.3f}\n")


def measure(place: Path, posts: int, files: int) -> dict[str, float]:
    """All figures, of a store made in `place`."""
    recipe = place / "million.toml"
    recipe.write_text(RECIPE.format(files=files, least=LEAST_SCORE))
    began = time.perf_counter()
    fill(recipe, place, posts)
    made = time.perf_counter() - began
    first = download(recipe, place)
    noop = min(download(recipe, place, "already done") for _ in range(3))
    job = load_job(recipe, place / "workspace")
    (job.dataset_folder(job.datasets[0][1]).images / NAME).unlink()
    again = download(recipe, place)
    chosen = json.loads(
        subprocess.run(
            [sys.executable, __file__, "--select", str(recipe)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    )
    if chosen["files"] != files:
        raise SystemExit(f"{chosen['files']} files were chosen, not {files}")
    rss = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "noop_s": noop,
        "select_s": chosen["seconds"],
        "rss_mb": rss,
        "again_s": min(first, again),
        "posts": posts,
        "files": files,
        "made_s": made,
    }


def download(recipe: Path, place: Path, expected: str = "done: million") -> float:
    """Seconds of one `urushi download`, which has nothing to fetch."""
    command = [str(Path(sys.executable).with_name("urushi")), "download", str(recipe)]
    began = time.perf_counter()
    ended = subprocess.run(
        [*command, "--workspace", str(place / "workspace")],
        check=False,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - began
    if ended.returncode or expected not in ended.stdout:
        raise SystemExit(f"urushi download: {ended.returncode} {ended.stdout}{ended.stderr}")
    return seconds


def select(recipe: Path) -> dict[str, float]:
    """Files chosen, and the seconds that it took with opening the store."""
    job = load_job(recipe, recipe.parent / "workspace")
    _, dataset = job.datasets[0]
    asked = asked_of(recipe)
    began = time.perf_counter()
    with Store(job.dataset_folder(dataset).posts, asked.site) as store:
        crawl = store.crawl(dialect_of(asked.site).query(asked).key)
        if crawl is None:
            raise SystemExit("the search is not in the store")
        files = sum(1 for _ in Choice(store, crawl, rules_of(dataset)).wanted())
    return {"files": files, "seconds": time.perf_counter() - began}


def asked_of(recipe: Path) -> Download:
    asked = load_job(recipe, Path()).datasets[0][1].download
    assert asked is not None
    return asked


def fill(recipe: Path, place: Path, posts: int) -> None:
    """The store, and the files that the recipe takes of it."""
    job = load_job(recipe, place / "workspace")
    folder = job.dataset_folder(job.datasets[0][1])
    asked = asked_of(recipe)
    db = connect(folder.posts)
    db.execute("PRAGMA synchronous = OFF")
    db.execute("PRAGMA foreign_keys = OFF")
    # Filled row by row in no order, indices take longer than all else together.
    indices = db.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    ).fetchall()
    for name, _ in indices:
        db.execute(f"DROP INDEX {name}")
    db.execute("BEGIN")
    names = [f"tag_{n}" for n in range(TAGS)] + [f"artist_{n}" for n in range(ARTISTS)]
    db.executemany(
        "INSERT INTO tag VALUES (?, 'danbooru', ?, ?, '2026-01-01')",
        ((n, name, "artist" if n >= TAGS else "general") for n, name in enumerate(names)),
    )
    key = dialect_of(asked.site).query(asked).key
    db.execute(
        "INSERT INTO crawl VALUES (1, 'danbooru', ?, 1, 1, ?, '2026-01-01', NULL)", (key, posts)
    )
    rows(db, posts)
    db.execute("INSERT INTO crawl_post SELECT 1, post_id FROM post")
    for _, statement in indices:
        db.execute(statement)
    db.execute("COMMIT")
    db.close()
    with Store(folder.posts, asked.site) as store:
        crawl = store.crawl(key)
        assert crawl is not None
        wanted = [w.md5 for w in Choice(store, crawl, rules_of(job.datasets[0][1])).wanted()]
        for md5 in wanted:
            path = folder.original(md5, "png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
        with store.transaction() as writing:
            writing.executemany(
                "INSERT INTO job VALUES (?, 'have', '', 0, 'png', 1, 64, 48, 'x', ?, ?, 'x')",
                ((md5, md5[::-1], int(md5[:15], 16)) for md5 in wanted),
            )


def rows(db: sqlite3.Connection, posts: int) -> None:
    """Posts, their raw JSON and their tags, by rising id."""
    rng = np.random.default_rng(1)
    raw = zlib.compress(b'{"id": 0}')
    db.executemany(
        "INSERT INTO post VALUES ('danbooru',?,?,'png',2900000,2480,3508,?,?,'active',?,?,NULL,"
        "'2026-01-01T00:00:00+00:00','2026-02-01T00:00:00.000+00:00',?,?,?,0)",
        _posts(rng, posts),
    )
    db.executemany(
        "INSERT INTO post_raw VALUES ('danbooru', ?, ?)", ((n, raw) for n in range(1, posts + 1))
    )
    db.executemany("INSERT INTO post_tag VALUES ('danbooru', ?, ?, ?)", _post_tags(rng, posts))


def _posts(rng: np.random.Generator, posts: int) -> Iterator[tuple[object, ...]]:
    ratings = rng.choice(len(RATINGS), posts, p=SHARES)
    scores = rng.exponential(14, posts).astype(int) - 3
    hosts, uploaders = rng.integers(0, HOSTS, posts), rng.integers(0, UPLOADERS, posts)
    for place in range(posts):
        number = place + 1
        md5 = hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()
        host = f"www.host{hosts[place]}.example"
        yield (
            number,
            md5,
            RATINGS[ratings[place]],
            int(scores[place]),
            f"https://files.example/original/{md5[:2]}/{md5[2:4]}/{md5}.png",
            f"https://{host}/works/{number}",
            f"user_{uploaders[place]}",
            host,
            md5[::-1],
        )


def _post_tags(rng: np.random.Generator, posts: int) -> Iterator[tuple[int, int, int]]:
    step = 10_000
    for start in range(0, posts, step):
        drawn = (TAGS * rng.random((step, TAGS_EACH)) ** 3).astype(int)
        drawn[:, -1] = TAGS + rng.integers(0, ARTISTS, step)
        for row, tags in enumerate(drawn[: posts - start].tolist()):
            for position, tag in enumerate(tags):
                yield start + row + 1, position, tag


if __name__ == "__main__":
    main()
