"""What is known not to work well, found in a recipe and in the pictures that are there.

Each trap has a code, by which a recipe can silence it (`silence = ["conv-rank"]`) and under which
WARNINGS.md gives its reason and remedy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.artefacts.chain import ALIKE_FILE
from pipeline.recipe import BuildRecipe, DatasetRecipe
from pipeline.recipe.quality import Percentiles


class Trap(NamedTuple):
    """One warning: its code, and a sentence that names the key and the remedy."""

    code: str
    text: str


CODES = (
    *("ratings", "contact", "request-rate", "query-tags", "artist-category", "no-score-words"),
    *("bucket-step", "configurations", "conv-rank", "alpha-above-rank", "alpha-few-pictures"),
    *("epochs-and-steps", "fading-rate", "short-rounds", "gate-always", "preview-size"),
    "pissa-rounds",
    *("few-pictures", "step-count", "held-out-few", "small-pictures", "shared-words"),
    *(
        "score-scheme",
        "disk",
        "alike",
        "found-rate",
        "found-rate-blocks",
        "found-rate-text",
        "averaged-schedule",
        "averaged-twice",
        "sdxl-small",
        "prediction-type",
    ),
    *("noise-at-zero-snr", "transparent-regularisation", "generated-regularisation"),
    *("masks-unused", "masks-unread", "no-masks", "no-gpu"),
)

DANBOORU_TAGS = 2
"""Tags per query without an account; ratings and other free metatags do not count."""
FREE_METATAGS = frozenset(
    (
        *("age", "child", "date", "downvotes", "duration", "embedded", "favcount", "filesize"),
        *("filetype", "height", "id", "is", "limit", "md5", "mpixels", "parent", "pixiv"),
        *("pixiv_id", "rating", "ratio", "score", "status", "tagcount", "upvote", "width"),
    )
)
FADED = 0.1
"""Share of the first round's rate under which a warning is due."""
FEW = 200
"""Pictures up to which an alpha above half the rank overfits before anything else is learned."""
CHARACTER_LEAST = 50
"""Pictures that a character wants."""
STEPS_SEEN = {"character": (4_000, 6_000), "situation": (9_000, None), "object": (9_000, None)}
"""Steps at batch 1 that were seen to be needed, by what is taught: at least, and at most."""
TOLERANCE = 2.0
"""How far from these a recipe may be before it is worth a word."""
HELD_OUT_FEW = 16
"""Held-out pictures: half of them choose a strength, half judge it."""
SMALL_SHARE = 0.1
"""Share of pictures smaller than the training size from which a warning is due."""
ALIKE_SHARE = 0.05
"""Share of pictures that look like another from which a warning is due."""
ANIMAGINE_LEAST = 100
"""Animagine's own cut for `masterpiece` is above 150, for `best quality` 100."""


@dataclass(frozen=True)
class Known:
    """What is known of one dataset's pictures; None where nothing is downloaded yet."""

    pictures: int | None = None
    small: int | None = None
    """Pictures of less area than the training size."""
    alike: int = 0
    """Pictures that look like another one."""
    looked_at: int = 0
    """Regularisation pictures opened."""
    transparent: int = 0
    """Of those, wholly transparent."""
    generated: int = 0
    """Of those, drawn by a model."""
    shared_words: tuple[tuple[str, str], ...] = ()
    """Pairs of tags that share a word and stand together, the commonest first."""


def dataset_traps(dataset: DatasetRecipe) -> Iterator[Trap]:
    """Traps in a dataset recipe alone."""
    at = f"of {dataset.name}"
    if dataset.download is not None:
        wider = [rating for rating in dataset.download.ratings if rating != "general"]
        if wider:
            yield Trap(
                "ratings",
                f"[download].ratings {at} takes {', '.join(wider)} pictures too; "
                "what the model has seen it will draw.",
            )
        if dataset.download.host is None:
            yield from _public_site(dataset)
    if "artist" not in dataset.caption.drop_categories:
        yield Trap(
            "artist-category",
            f'[caption].drop_categories {at} does not list "artist"; artists\' names are left out '
            "of captions all the same. List it, so that the recipe says what happens.",
        )
    if dataset.download is not None and not dataset.caption.scale:
        yield Trap(
            "no-score-words",
            f"[caption].quality {at} is empty: no prompt word will stand for quality.",
        )


def _public_site(dataset: DatasetRecipe) -> Iterator[Trap]:
    from pipeline.download.sites import dialect_of

    download, at = dataset.download, f"of {dataset.name}"
    if download is None:
        return
    dialect = dialect_of(download.site)
    if not download.contact:
        yield Trap(
            "contact",
            f"[download].contact {at} is empty. The site's admins ask programs for a user name or "
            "id in the User-Agent, and block those that they cannot reach.",
        )
    if download.requests_per_second > dialect.most_per_second:
        yield Trap(
            "request-rate",
            f"[download].requests_per_second {at} is {download.requests_per_second:g}; "
            f"{dialect.domains[0]} allows {dialect.most_per_second:g} and asks for about 1.",
        )
    words = download.tags.split()
    counted = [w for w in words if w.lstrip("-").partition(":")[0] not in FREE_METATAGS]
    if download.site == "danbooru" and len(counted) > DANBOORU_TAGS:
        yield Trap(
            "query-tags",
            f"[download].tags {at} has {len(counted)} tags ({', '.join(counted)}); Danbooru takes "
            f"{DANBOORU_TAGS}, not counting rating: and other free ones. The others are looked for "
            "here, so that more pages are read than are needed.",
        )


def build_traps(recipe: BuildRecipe) -> Iterator[Trap]:
    """Traps in a build recipe alone."""
    resize = recipe.resize
    sides = [("resolution", resize.resolution)]
    sides += [("more_resolutions", side) for side in resize.more_resolutions]
    for key, pixels in (*sides, ("min_side", resize.min_side), ("max_side", resize.max_side)):
        if pixels % resize.step:
            down = pixels - pixels % resize.step
            yield Trap(
                "bucket-step",
                f"[resize].{key} {pixels} is not a multiple of step {resize.step}, so no bucket "
                f"has this side. Use {down or resize.step} or {down + resize.step}.",
            )
    if recipe.base.config is None and recipe.base.checkpoint.is_file():
        yield Trap(
            "configurations",
            "[base].config is not set: diffusers takes a single file's configurations from its hub "
            "cache, and the first time from the network.",
        )
    if recipe.lora.conv_rank:
        yield Trap(
            "conv-rank",
            f"[lora].conv_rank {recipe.lora.conv_rank} trains convolutions too: larger files and "
            "slower steps. The one controlled comparison on SD 1.5 that we know of saw no gain.",
        )
    if recipe.lora.linear_alpha > recipe.lora.rank and not recipe.lora.rslora:
        yield Trap(
            "alpha-above-rank",
            f"[lora].alpha {recipe.lora.linear_alpha:g} is above rank {recipe.lora.rank}: it "
            "multiplies every step, as a higher learning rate would. Raise the rate instead.",
        )
    yield from _rounds(recipe)
    for key in ("width", "height"):
        pixels = getattr(recipe.preview, key)
        if pixels is not None and pixels % 64 and resize.step % 64 == 0:
            yield Trap(
                "preview-size",
                f"[preview].{key} {pixels} is not a multiple of 64, as the training sizes are.",
            )


def _rounds(recipe: BuildRecipe) -> Iterator[Trap]:
    rounds, law = recipe.rounds, recipe.law()
    if {"epochs", "steps"} <= rounds.model_fields_set and rounds.steps and rounds.epochs:
        yield Trap(
            "epochs-and-steps", "[rounds] has epochs and steps; steps count, epochs are ignored."
        )
    for number, by_hand in enumerate(recipe.round, 1):
        if by_hand.epochs is not None and by_hand.steps is not None:
            yield Trap(
                "epochs-and-steps", f"[[round]] number {number} has epochs and steps; steps count."
            )
    last, first, final = law[-1], law[0].learning_rate, law[-1].learning_rate
    if first is not None and final is not None and final < FADED * first:
        yield Trap(
            "fading-rate",
            f"[rounds].decay brings round {last.number} to {final:.2g}, {final / first:.0%} of "
            "round 1's rate: late rounds may change next to nothing.",
        )
    if rounds.gate == "always" and rounds.strength == "auto":
        yield Trap(
            "gate-always",
            '[rounds].gate "always" merges every round, also one whose best strength does not '
            "lower the held-out loss.",
        )
    if rounds.start == "pissa" and len(law) > 1:
        yield Trap(
            "pissa-rounds",
            f'[rounds].start "pissa" begins all {len(law)} rounds at nearly the same directions, '
            "the weights' own: in our tests five rounds came no further than one. Use another "
            "start, or one round of as many steps.",
        )


def picture_traps(recipe: BuildRecipe, dataset: DatasetRecipe, known: Known) -> Iterator[Trap]:
    """Traps in what a build does with one dataset's pictures."""
    at, lora, side = f"of {dataset.name}", recipe.lora, recipe.resize.resolution
    yield from _score_scheme(recipe, dataset)
    if known.shared_words:
        pairs = ", ".join(f"{a} / {b}" for a, b in known.shared_words[:5])
        yield Trap(
            "shared-words",
            f"Tags {at} share words and stand together, and will bleed into each other: {pairs}. "
            "Rename or collapse them with a [[caption.rule]]; "
            "`urushi caption RECIPE --stats` lists all.",
        )
    count = known.pictures
    if count is None:
        return
    if dataset.caption.preset == "character" and count < CHARACTER_LEAST:
        yield Trap(
            "few-pictures",
            f"{dataset.name} has {count} pictures; a character wants {CHARACTER_LEAST} or more.",
        )
    if lora.linear_alpha > lora.rank / 2 and count < FEW and not lora.rslora:
        yield Trap(
            "alpha-few-pictures",
            f"[lora].alpha {lora.linear_alpha:g} is above half of rank {lora.rank} with only "
            f"{count} pictures: they will be learned by heart. Use {lora.rank / 2:g} or less.",
        )
    kept = recipe.rounds.kept_back(count)
    if kept < HELD_OUT_FEW:
        yield Trap(
            "held-out-few",
            f"{kept} pictures {at} are held out; half of them choose strengths, half judge. "
            f"Raise [rounds].held_out, so that it is {HELD_OUT_FEW} or more.",
        )
    if known.small is not None and known.small > SMALL_SHARE * count:
        yield Trap(
            "small-pictures",
            f"{known.small} of {count} pictures {at} have less area than {side} x {side} and are "
            "scaled up: the model learns blur. Lower [resize].resolution, or leave them out.",
        )
    if known.alike > ALIKE_SHARE * count:
        yield Trap(
            "alike",
            f"{known.alike} of {count} pictures {at} look like another one ({ALIKE_FILE} beside "
            "them lists the groups): what they share is learned that much more. "
            "Leave out all but one of each, by [exclude].md5s.",
        )
    yield from _step_count(recipe, dataset, count)


def _score_scheme(recipe: BuildRecipe, dataset: DatasetRecipe) -> Iterator[Trap]:
    scale = dataset.caption.scale
    if "animagine" not in recipe.base.checkpoint.name.lower() or isinstance(scale, Percentiles):
        return
    if scale and scale[0][0] < ANIMAGINE_LEAST:
        yield Trap(
            "score-scheme",
            f"[caption].quality of {dataset.name} says {scale[0][1]!r} from score {scale[0][0]}; "
            "the base is an Animagine, which was taught from 151. "
            'Use quality = "animagine-3.0" or "animagine-3.1", or words of your own.',
        )


def _step_count(recipe: BuildRecipe, dataset: DatasetRecipe, count: int) -> Iterator[Trap]:
    seen = STEPS_SEEN.get(dataset.caption.preset or "")
    if seen is None:
        return
    least, most = seen
    trained = count - recipe.rounds.kept_back(count)
    step = recipe.train.batch_size * recipe.train.accumulation
    samples = sum(
        law.steps * step if law.steps else (law.epochs or 0) * trained for law in recipe.law()
    )
    wanted = f"{least:,}" + (f" to {most:,}" if most else " and more")
    if samples * TOLERANCE < least or (most is not None and samples > most * TOLERANCE):
        yield Trap(
            "step-count",
            f"All rounds show about {samples:,} pictures of {dataset.name}; for a "
            f"{dataset.caption.preset}, {wanted} steps at batch 1 were seen to be needed. "
            "Change [rounds].epochs or count.",
        )
