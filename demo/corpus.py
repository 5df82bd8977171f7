"""A seed into a booru's corpus: about 400 posts, their files, and which of them a download keeps.

The pictures are gold-on-lacquer drawings in a style that the tiny base was not taught. Around them
lies what a real booru has too: artists and meta tags, scores from below zero to thousands, all four
ratings (only the field differs; every drawing is harmless), deleted and hidden posts, doubles, and
files that are broken in each of the ways that a downloader must notice. By hand:

    urushi booru
"""

import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np

from demo.drawings import CHARACTERS, Scene, draw, lacquer_scene
from pipeline.size import Size

Flaw = Literal[
    "deleted", "hidden", "double", "mismatch", "truncated", "missing", "animated", "video"
]
"""What is wrong with a post: mismatch is served with bytes of another md5, truncated has the right
md5 of a file that was cut before it was uploaded, missing is a 404, double shows another's file."""

COPYRIGHT = "maki-e_box"
CHARACTER_NAMES = {"robot": "karakuri_(maki-e)", "cat": "tama_(maki-e)"}
ARTISTS = ("kinpun", "red_lantern", "moon_hare", "shirakaba_77", "nurishi_(workshop)", "aogai")
"""`kinpun` is also part of a general tag; two others hold a word that general tags hold too."""
IMITATED = "kinpun"
IMITATION = f"{IMITATED}_(style)"
ALIASES = {"beni_chochin": "red_lantern", "tsuki_usagi": "moon_hare"}
"""Names of today by the ones that these artists had before."""
META = ("highres", "commentary_request", "absurdres", "translation_request", "bad_id", "scan")

FIRST_ID = 7_000_000
FIRST_DAY = datetime(2025, 1, 4, 9, 30, tzinfo=UTC)

SIZES = (
    *(Size(192, 192),) * 6,
    Size(176, 220),
    Size(220, 176),
    Size(160, 240),
    Size(240, 160),
)
"""Drawn from evenly: mostly square, as what it teaches is looked at in squares."""
FORMATS: tuple[tuple[str, str, Mapping[str, int]], ...] = (
    ("png", "PNG", {"compress_level": 4}),
    ("jpg", "JPEG", {"quality": 94, "subsampling": 0}),
    ("webp", "WEBP", {"quality": 94, "method": 2}),
)
FLAW_SHARES: Mapping[Flaw, float] = {
    "deleted": 0.035,
    "hidden": 0.02,
    "double": 0.015,
    "mismatch": 0.0125,
    "truncated": 0.01,
    "missing": 0.0075,
    "animated": 0.005,
    "video": 0.0025,
}
RATING_SHARES: Mapping[str, float] = {"s": 0.055, "q": 0.035, "e": 0.025}
RATING_LETTERS = {"general": "g", "sensitive": "s", "questionable": "q", "explicit": "e"}

SCORE_BANDS = ((-12, 0, 0.08), (0, 6, 0.22), (6, 18, 0.3), (18, 60, 0.25), (60, 150, 0.12))
"""(least, under, share): bands around the cuts 6, 18 and 60."""
HUGE_SCORES = (900, 4_200)
"""(least, under) of the few that no band takes."""


@dataclass(frozen=True)
class Post:
    """A post as its site states it; where it has a flaw, the file may say otherwise."""

    id: int
    md5: str
    extension: str
    bytes: int
    size: Size
    tags: Mapping[str, tuple[str, ...]]
    """By category: general, artist, copyright, character, meta."""
    up_score: int
    down_score: int
    """Zero or negative."""
    rating: str
    """g, s, q or e."""
    created_at: datetime
    flaw: Flaw | None = None

    @property
    def score(self) -> int:
        return self.up_score + self.down_score

    @property
    def is_deleted(self) -> bool:
        return self.flaw == "deleted"

    @property
    def is_visible(self) -> bool:
        """Whether the site shows its md5 and its file."""
        return self.flaw != "hidden"


@dataclass(frozen=True)
class Corpus:
    """Posts by rising id, and the bytes that are served under each md5 (404 for the others)."""

    posts: tuple[Post, ...]
    files: Mapping[str, bytes]
    aliases: Mapping[str, str] = field(default_factory=lambda: ALIASES)
    """Names of today by the tags' former ones."""

    def wanted(self, ratings: Iterable[str] = ("general",)) -> frozenset[str]:
        """The md5s that a right download of all still pictures of these ratings ends with."""
        return frozenset(p.md5 for p in self._asked(ratings) if p.flaw in (None, "double"))

    def lost(self, ratings: Iterable[str] = ("general",)) -> frozenset[int]:
        """Ids of the posts that such a download asks for and must report as not to be had."""
        broken = ("hidden", "mismatch", "truncated", "missing")
        return frozenset(p.id for p in self._asked(ratings) if p.flaw in broken)

    def _asked(self, ratings: Iterable[str]) -> list[Post]:
        letters = {RATING_LETTERS[rating] for rating in ratings}
        return [p for p in self.posts if p.rating in letters and not p.is_deleted]


def generate(seed: int = 20_260, count: int = 400) -> Corpus:
    """The corpus that `seed` names, of `count` posts (at least 40). About 20 ms a post."""
    rng = np.random.default_rng(seed)
    flaws: list[Flaw | None] = [
        flaw for flaw, share in FLAW_SHARES.items() for _ in range(max(1, round(share * count)))
    ]
    ratings = [r for r, share in RATING_SHARES.items() for _ in range(max(1, round(share * count)))]
    # Flawed posts are of rating general, so that each flaw meets a query for general pictures.
    kinds = [(flaw, "g") for flaw in flaws] + [(None, rating) for rating in ratings]
    kinds += [(None, "g")] * (count - len(kinds))
    order = [kinds[int(i)] for i in rng.permutation(len(kinds))]

    posts: list[Post] = []
    files: dict[str, bytes] = {}
    identifier = FIRST_ID
    for flaw, rating in order:
        identifier += int(rng.integers(1, 40))
        post, served = _post(rng, identifier, flaw, rating)
        posts.append(post)
        if served is not None:
            files[post.md5] = served
    return Corpus(tuple(_with_doubles(rng, posts, files)), files)


def _post(
    rng: np.random.Generator, identifier: int, flaw: Flaw | None, rating: str
) -> tuple[Post, bytes | None]:
    """A post and the bytes that are served for it; None for a 404."""
    scene = lacquer_scene(rng)
    size = SIZES[int(rng.integers(len(SIZES)))]
    extension, stated, served = _file(rng, scene, size, flaw)
    up, down = _votes(rng)
    post = Post(
        id=identifier,
        md5=hashlib.md5(stated, usedforsecurity=False).hexdigest(),
        extension=extension,
        bytes=len(stated),
        size=size,
        tags=_tags(rng, scene),
        up_score=up,
        down_score=down,
        rating=rating,
        created_at=FIRST_DAY + timedelta(minutes=17 * (identifier - FIRST_ID)),
        flaw=flaw,
    )
    return post, served


def _file(
    rng: np.random.Generator, scene: Scene, size: Size, flaw: Flaw | None
) -> tuple[str, bytes, bytes | None]:
    """Extension, the bytes that the post states, the bytes that are served."""
    extension, kind, options = FORMATS[int(rng.choice(3, p=(0.4, 0.4, 0.2)))]
    buffer = io.BytesIO()
    picture = draw(scene, size.width, size.height)
    if flaw == "animated":
        turned = [picture, picture.rotate(180)]
        picture.save(buffer, "GIF", save_all=True, append_images=turned[1:], duration=400)
        return "gif", buffer.getvalue(), buffer.getvalue()
    picture.save(buffer, kind, **options)
    whole = buffer.getvalue()
    if flaw == "video":
        film = b"\x00\x00\x00\x18ftypmp42" + whole
        return "mp4", film, film
    if flaw == "truncated":
        return extension, whole[: len(whole) // 2], whole[: len(whole) // 2]
    if flaw == "mismatch":
        middle = len(whole) // 2
        flipped = bytes((whole[middle] ^ 0xFF,))
        return extension, whole, whole[:middle] + flipped + whole[middle + 1 :]
    if flaw == "missing":
        return extension, whole, None
    return extension, whole, whole


def _tags(rng: np.random.Generator, scene: Scene) -> dict[str, tuple[str, ...]]:
    artist = ARTISTS[int(rng.integers(len(ARTISTS)))]
    general = list(scene.general_tags())
    if artist != IMITATED and rng.random() < 0.15:
        general.append(IMITATION)
    motifs = dict.fromkeys(figure.motif for figure in scene.figures)
    meta = [name for name in META if rng.random() < 0.3]
    return {
        "general": tuple(sorted(set(general))),
        "artist": (artist,),
        "copyright": (COPYRIGHT,),
        "character": tuple(sorted(CHARACTER_NAMES[m] for m in motifs if m in CHARACTERS)),
        "meta": tuple(sorted(meta)),
    }


def _votes(rng: np.random.Generator) -> tuple[int, int]:
    """Votes up and (as a negative number) down."""
    shares = [share for _, _, share in SCORE_BANDS]
    band = int(rng.choice(len(shares) + 1, p=(*shares, 1 - sum(shares))))
    least, under = HUGE_SCORES if band == len(shares) else SCORE_BANDS[band][:2]
    score = int(rng.integers(least, under))
    up = max(score, 0) + int(rng.integers(0, 4))
    return up, score - up


def _with_doubles(
    rng: np.random.Generator, posts: list[Post], files: dict[str, bytes]
) -> list[Post]:
    """The posts, those that are doubles made to show the file of a sound, earlier or later one."""
    sound = [post for post in posts if post.flaw is None and post.rating == "g"]
    out = []
    for post in posts:
        if post.flaw == "double":
            files.pop(post.md5, None)
            twin = sound[int(rng.integers(len(sound)))]
            tags = dict(twin.tags) | {"meta": tuple(sorted({*twin.tags["meta"], "duplicate"}))}
            post = replace(
                post,
                md5=twin.md5,
                extension=twin.extension,
                bytes=twin.bytes,
                size=twin.size,
                tags=tags,
            )
        out.append(post)
    return out
