"""How many captions a second, all rules on: one core, 50,000 made-up posts of booru-like tags.

python benchmarks/caption.py [--quick] [--json FILE]
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

# A script's own folder comes first, and files there are called what rooms are.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))

from pipeline.artefacts.records import ImageRecord
from pipeline.caption.rules import compile_rules, write_caption
from pipeline.recipe.caption import Caption

POSTS, QUICK = 50_000, 2_000
TAGS = 40
"""On one post, as on a well-tagged booru."""
SECTION = {
    "preset": "character",
    "quality": "noobai",
    "rating_words": {"general": "safe"},
    "year_words": [[2022, "newest"], [2015, "mid"], [0, "oldest"]],
    "drop_tags": ["*_request", "tag_1", "tag_2"],
    "rule": [
        {"rename": {f"tag_{n}": f"word{n}" for n in range(10, 40)}},
        {"collapse": ["tag_50", "tag_51", "tag_52", "tag_53"]},
        {"collapse": ["tag_60", "tag_61"]},
        {"fold": ["*_ribbon", "tag_7*"], "into": "girl_1"},
        {"add": ["trigger"]},
    ],
}
"""Every kind of rule that [caption] has."""


def posts(count: int) -> list[ImageRecord]:
    """Tags by a falling law, so that some stand on most posts and most on few."""
    draw = random.Random(1)
    vocabulary = [f"tag_{n}" for n in range(6000)] + [
        f"{colour}_{noun}"
        for colour in ("blue", "red", "long")
        for noun in ("hair", "eyes", "ribbon")
    ]
    artists = [f"painter_{n}_of_things" for n in range(4000)]
    made = []
    for number in range(count):
        places = {int(len(vocabulary) * draw.random() ** 3) for _ in range(TAGS)}
        made.append(
            ImageRecord(
                md5=f"{number:032x}",
                path=f"{number}.png",
                width=1000,
                height=1000,
                tags={
                    "general": ("1girl", *(vocabulary[place] for place in sorted(places))),
                    "character": (f"girl_{draw.randrange(300)}",),
                    "copyright": ("series",),
                    "artist": (draw.choice(artists),),
                    "meta": ("highres", "commentary_request"),
                },
                score=int(draw.expovariate(0.05)),
                rating="general",
                source=f"danbooru:{number}",
                created_at=f"{draw.randrange(2008, 2026)}-05-01T00:00:00+00:00",
                scored_at="2026-06-01T00:00:00+00:00",
            )
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    images = posts(QUICK if asked.quick else POSTS)
    started = time.process_time()
    rules = compile_rules(Caption.model_validate(SECTION), images, from_booru=True)
    compiled = time.process_time()
    written = [write_caption(image, rules) for image in images]
    ended = time.process_time()
    seconds = ended - started
    print(
        f"{len(written):,} captions in {seconds:.2f} CPU s: {len(written) / seconds:,.0f} a second"
    )
    print(f"  {compiled - started:.2f} s of it to compile the rules; the last one reads")
    print(f"  {written[-1].record.caption[:160]}")
    if asked.json:
        figures = {"captions_per_s": round(len(written) / seconds, 1)}
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
