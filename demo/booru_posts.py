"""A corpus post into the JSON that Danbooru gives for it, key for key."""

from collections.abc import Iterable, Mapping
from typing import Any

from demo.corpus import Post

CATEGORY_NUMBERS = {"general": 0, "artist": 1, "copyright": 3, "character": 4, "meta": 5}


def post_json(post: Post, address: str) -> dict[str, Any]:
    """`post` as the server at `address` shows it.

    Where a post is not for everyone, md5 and the file's addresses are absent, not null.
    """
    created = post.created_at.isoformat(timespec="milliseconds")
    everything = sorted(tag for tags in post.tags.values() for tag in tags)
    out: dict[str, Any] = {
        "id": post.id,
        "created_at": created,
        "updated_at": created,
        "uploader_id": 100 + post.id % 7,
        "approver_id": None,
        "score": post.score,
        "up_score": post.up_score,
        "down_score": post.down_score,
        "fav_count": max(0, post.score) * 2,
        "rating": post.rating,
        "source": "",
        "file_ext": post.extension,
        "file_size": post.bytes,
        "image_width": post.size.width,
        "image_height": post.size.height,
        "tag_string": " ".join(everything),
        "tag_count": len(everything),
        "parent_id": None,
        "has_children": False,
        "has_active_children": False,
        "has_visible_children": False,
        "has_large": post.size.width > 850,
        "is_pending": False,
        "is_flagged": False,
        "is_deleted": post.is_deleted,
        "is_banned": not post.is_visible,
        "pixiv_id": None,
        "bit_flags": 0,
        "last_commented_at": None,
        "last_comment_bumped_at": None,
        "last_noted_at": None,
    }
    for category in CATEGORY_NUMBERS:
        names = post.tags.get(category, ())
        out[f"tag_string_{category}"] = " ".join(names)
        out[f"tag_count_{category}"] = len(names)
    asset = {
        "id": post.id + 500_000,
        "created_at": created,
        "updated_at": created,
        "file_ext": post.extension,
        "file_size": post.bytes,
        "image_width": post.size.width,
        "image_height": post.size.height,
        "duration": 0.8 if post.extension in ("gif", "mp4") else None,
        "status": "active",
        "is_public": post.is_visible,
    }
    if post.is_visible:
        url = f"{address}{file_path(post)}"
        out |= {"md5": post.md5, "file_url": url, "large_file_url": url, "preview_file_url": url}
        original = {
            "type": "original",
            "url": url,
            "width": post.size.width,
            "height": post.size.height,
            "file_ext": post.extension,
        }
        asset |= {"md5": post.md5, "file_key": post.md5[:9], "variants": [original]}
    return out | {"media_asset": asset}


def alias_rows(aliases: Mapping[str, str], names: Iterable[str]) -> list[dict[str, Any]]:
    """The active aliases of these names, the latest first."""
    wanted = set(names)
    rows = [
        {"id": number, "antecedent_name": former, "consequent_name": name, "status": "active"}
        for number, (former, name) in enumerate(aliases.items(), 1)
        if name in wanted
    ]
    return rows[::-1]


def file_path(post: Post) -> str:
    """/original/ab/cd/MD5.ext."""
    return f"/original/{post.md5[:2]}/{post.md5[2:4]}/{post.md5}.{post.extension}"
