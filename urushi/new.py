"""`urushi new NAME`: a dataset and a build recipe, commented, to start from."""

import re
from pathlib import Path

from pipeline.artefacts.files import write_text
from pipeline.errors import RequestError

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

BOORU = """\
[download]
site = "danbooru"
tags = "{name}"            # the query, as typed into the site's search box
ratings = ["general"]      # anything wider is spelled out: sensitive, questionable, explicit
limit = 5_000              # at most so many pictures, newest first
contact = ""               # your user name or id there, so that its admins can reach you
# host = "http://127.0.0.1:8642"    another address that speaks this site's API (`urushi booru`)
# requests_per_second = 1.0         what Danbooru asks of programs
# connections = 2                   files at the same time
# least_score = 6                   leave out what fewer people liked

# [exclude]                         never taken, whatever the search finds
# artists = ["some_artist"]
# files = ["do-not-train.txt"]      an md5 or an artist a line
"""

FOLDER = """\
[folder]
path = {path}
# Tags are read from NAME.txt beside NAME.jpg, separated by commas, where there is one.
"""

PICTURES = """\
# What the pictures are. Checked by `urushi check`; fetched by `urushi download`.
name = "{name}"

{source}
[caption]
# The first word whose score a picture reaches is appended to its caption.
quality = [[60, "masterpiece"], [18, "best quality"], [6, "high quality"]]
drop_categories = ["artist", "meta"]       # tags of these never reach a caption
drop_tags = []                             # single tags to drop, as the site spells them
"""

BUILD = """\
# What is done with the pictures. `urushi plan` says what it will take, `urushi run` does it.
name = "{name}"
seed = 0

[base]
checkpoint = "base.safetensors"    # SD 1.5 or SDXL; a file or a diffusers folder
# config = "base-config"           # a diffusers folder's configurations: needs no network

[dataset]
recipe = "{name}_pictures.toml"

[resize]
resolution = 512           # area side, pixels; 768 is what the original builds used
step = 64                  # bucket sides are multiples of this, pixels
min_side = 320
max_side = 1024

[lora]
rank = 32
alpha = 16                 # the delta is alpha / rank x up x down
conv_rank = 0              # above 0 trains 3x3 convolutions too

[train]
batch_size = 2
optimizer = "adamw8bit"    # or adamw, lion8bit, adafactor, prodigy, schedulefreeadamw, …
scheduler = "cosine"       # from the peak to a tenth of it, in each round
gradient_checkpointing = false

[rounds]
count = 4
learning_rate = 1e-4       # each round's peak; a list, or "auto": short trials find it
epochs = [6, 4]            # passes over the pictures, by round; the last value repeats
strength = "auto"          # searched on held-out loss; "damped" for tens of pictures; a number
gate = "improve"           # a round that does not help is tried once more, then left out

[preview]
prompts = [
    "1girl, solo, masterpiece, best quality",
    "scenery, sky, cloud, masterpiece, best quality",
]
negative = "worst quality, low quality"
seed = 0

# Rounds appended by hand, after those of the law:
# [[round]]
# dataset = "other.toml"
# epochs = 2
"""


def write_recipes(name: str, folder: Path, pictures: Path | None) -> tuple[Path, Path]:
    """Writes NAME_pictures.toml and NAME.toml into `folder`; returns their paths.

    Args:
        pictures: a folder with pictures of the user's; None takes them from a booru.

    Raises:
        RequestError: the name will not do as a folder's, or the recipes are there already.
    """
    if not NAME.fullmatch(name):
        raise RequestError(
            f"{name!r} cannot be a name: lower-case letters, digits, _ and -, "
            "beginning with a letter or digit, at most 64."
        )
    if pictures is not None and not pictures.is_dir():
        raise RequestError(f"There is no folder {pictures} (--pictures).")
    dataset, build = folder / f"{name}_pictures.toml", folder / f"{name}.toml"
    for path in (dataset, build):
        if path.exists():
            raise RequestError(f"{path} is there already. Choose another name, or edit it.")
    if pictures is None:
        source = BOORU.format(name=name)
    else:
        source = FOLDER.format(path=_quoted(pictures.resolve()))
    write_text(dataset, PICTURES.format(name=name, source=source))
    write_text(build, BUILD.format(name=name))
    for path in (dataset, build):
        print(path)
    print(f"Set [base].checkpoint in {build.name}, then: urushi check {build.name}")
    return dataset, build


def _quoted(path: Path) -> str:
    """A path as a TOML string."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
