"""`urushi check RECIPE`: what is wrong with a recipe, and what is known not to work well.

Errors end it with exit code 2; warnings are printed and leave it at 0. Nothing is downloaded, and
of checkpoints only the header is read.
"""

from collections.abc import Iterator
from pathlib import Path

from pipeline.artefacts.job import Job, load_job
from pipeline.errors import RequestError
from pipeline.recipe import BuildRecipe, DatasetRecipe
from urushi.table import size

DANBOORU_TAGS = 2
"""Tags per query without an account; ratings and other free metatags do not count."""
DANBOORU_REQUESTS = 10.0
"""Its documented ceiling, requests per second."""
FREE_METATAGS = frozenset(
    (
        *("age", "child", "date", "downvotes", "duration", "embedded", "favcount", "filesize"),
        *("filetype", "height", "id", "is", "limit", "md5", "mpixels", "parent", "pixiv"),
        *("pixiv_id", "rating", "ratio", "score", "status", "tagcount", "upvote", "width"),
    )
)
FADED = 0.1
"""Share of the first round's rate under which a warning is due."""


def print_check(recipe: Path, workspace: Path) -> None:
    """Prints what the recipe asks and the warnings.

    Raises:
        RequestError: what is wrong with it.
    """
    job = load_job(recipe, workspace)
    for _, dataset in job.datasets:
        _require_folder(dataset)
    base = [f"  base: {_base(job.build)}"] if job.build is not None else []
    print("\n".join([f"{recipe}: {_what(job)}", *base]))
    warnings = [w for _, dataset in job.datasets for w in dataset_warnings(dataset)]
    if job.build is not None:
        warnings += build_warnings(job.build)
    for warning in warnings:
        print(f"  warning: {warning}")
    if not warnings:
        print("  nothing to warn of")


def _what(job: Job) -> str:
    names = ", ".join(dataset.name for _, dataset in job.datasets)
    if job.build is None:
        return f"dataset {names}"
    return f"build {job.build.name}, {len(job.build.law())} rounds over {names}"


def _require_folder(dataset: DatasetRecipe) -> None:
    if dataset.folder is not None and not dataset.folder.path.is_dir():
        raise RequestError(
            f"There is no folder {dataset.folder.path} ([folder].path of {dataset.name}). "
            "Paths in a recipe are meant from the recipe's own folder."
        )


def _base(recipe: BuildRecipe) -> str:
    from pipeline.models.inspect import inspect, require_supported

    facts = inspect(recipe.base)
    require_supported(facts)
    zero = ", zero terminal SNR" if facts.zero_terminal_snr else ""
    return (
        f"{facts.path} ({facts.family}, {facts.layout}, {facts.prediction_type}{zero}, "
        f"{facts.tensors} tensors, {size(facts.bytes)})"
    )


def dataset_warnings(dataset: DatasetRecipe) -> Iterator[str]:
    """Sentences for a person, each naming its key."""
    at = f"of {dataset.name}"
    if dataset.download is not None:
        download = dataset.download
        wider = [rating for rating in download.ratings if rating != "general"]
        if wider:
            yield (
                f"[download].ratings {at} takes {', '.join(wider)} pictures too; "
                "what the model has seen it will draw."
            )
        if download.host is None:
            yield from _public_site_warnings(dataset)
    if "artist" not in dataset.caption.drop_categories:
        yield f"[caption].drop_categories {at} lets artists' names into captions."
    if not dataset.caption.quality:
        yield f"[caption].quality {at} is empty: no prompt word will stand for quality."


def _public_site_warnings(dataset: DatasetRecipe) -> Iterator[str]:
    download, at = dataset.download, f"of {dataset.name}"
    if download is None:
        return
    if not download.contact:
        yield (
            f"[download].contact {at} is empty. The site's admins ask programs for a user name or "
            "id in the User-Agent, and block those that they cannot reach."
        )
    if download.requests_per_second > DANBOORU_REQUESTS:
        yield (
            f"[download].requests_per_second {at} is {download.requests_per_second:g}; Danbooru "
            f"allows {DANBOORU_REQUESTS:g} and asks for about 1."
        )
    words = download.tags.split()
    counted = [w for w in words if w.lstrip("-").partition(":")[0] not in FREE_METATAGS]
    if len(counted) > DANBOORU_TAGS:
        yield (
            f"[download].tags {at} has {len(counted)} tags ({', '.join(counted)}); without an "
            f"account Danbooru takes {DANBOORU_TAGS}, not counting rating: and other free ones."
        )


def build_warnings(recipe: BuildRecipe) -> Iterator[str]:
    """Sentences for a person, each naming its key."""
    resize = recipe.resize
    for key in ("resolution", "min_side", "max_side"):
        pixels = getattr(resize, key)
        if pixels % resize.step:
            down = pixels - pixels % resize.step
            yield (
                f"[resize].{key} {pixels} is not a multiple of step {resize.step}, so no bucket "
                f"has this side. Use {down or resize.step} or {down + resize.step}."
            )
    if recipe.base.config is None and recipe.base.checkpoint.is_file():
        yield (
            "[base].config is not set: diffusers takes a single file's configurations from its hub "
            "cache, and the first time from the network."
        )
    if recipe.lora.conv_rank:
        yield (
            f"[lora].conv_rank {recipe.lora.conv_rank} trains convolutions too: larger files and "
            "slower steps. The one controlled comparison on SD 1.5 that we know of saw no gain."
        )
    yield from _rounds_warnings(recipe)
    for key in ("width", "height"):
        pixels = getattr(recipe.preview, key)
        if pixels is not None and pixels % 64 and resize.step % 64 == 0:
            yield f"[preview].{key} {pixels} is not a multiple of 64, as the training sizes are."


def _rounds_warnings(recipe: BuildRecipe) -> Iterator[str]:
    rounds, law = recipe.rounds, recipe.law()
    if {"epochs", "steps"} <= rounds.model_fields_set and rounds.steps and rounds.epochs:
        yield "[rounds] has epochs and steps; steps count, epochs are ignored."
    for number, by_hand in enumerate(recipe.round, 1):
        if by_hand.epochs is not None and by_hand.steps is not None:
            yield f"[[round]] number {number} has epochs and steps; steps count."
    last = law[-1]
    if last.learning_rate < FADED * law[0].learning_rate:
        yield (
            f"[rounds].decay brings round {last.number} to {last.learning_rate:.2g}, "
            f"{last.learning_rate / law[0].learning_rate:.0%} of round 1's rate: late rounds may "
            "change next to nothing."
        )
    if rounds.gate == "always" and rounds.strength == "auto":
        yield (
            '[rounds].gate "always" merges every round, also one whose best strength does not '
            "lower the held-out loss."
        )
