"""`urushi download`: the stage by hand, and what else is done with a dataset's pictures."""

from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.locks import locked
from pipeline.artefacts.workspace import DatasetFolder
from pipeline.errors import RequestError, UrushiError
from pipeline.recipe import DatasetRecipe
from urushi.progress import Terminal
from urushi.table import duration, size

MOST_SHOWN = 20
"""Files that are named one by one."""


def download(
    recipe: Path,
    workspace: Path,
    *,
    refresh: bool = False,
    retry: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    sample: int | None = None,
) -> None:
    """Downloads the pictures of `recipe`'s datasets, or does the one other thing that is asked.

    Raises:
        RequestError: two things are asked at once, or what the stage raises.
        UrushiError: what the stage raises; with `verify`, that files are not as they were.
    """
    if sum((refresh, retry, verify, dry_run, sample is not None)) > 1:
        raise RequestError(
            "--refresh, --retry, --verify, --dry-run and --sample are asked for one by one."
        )
    job = load_job(recipe, workspace)
    if verify:
        _verify(job)
    elif dry_run:
        _each(job, _print_outlook)
    elif sample is not None:
        wanted = sample
        _each(job, lambda dataset, folder: _sample(job, dataset, folder, wanted))
    else:
        from pipeline.download.stage import run

        outcome = run(job, Terminal(), refresh=refresh, retry=retry)
        state = "already done" if outcome.already else "done"
        print(f"download: {state}: {outcome.summary}")


def _each(job: Job, act: Callable[[DatasetRecipe, DatasetFolder], None]) -> None:
    for _, dataset in job.datasets:
        act(dataset, job.dataset_folder(dataset))


def _verify(job: Job) -> None:
    from pipeline.download.store import Store
    from pipeline.download.verify import verify_booru, verify_folder

    wrong = 0
    for _, dataset in job.datasets:
        folder = job.dataset_folder(dataset)
        what = f"download {dataset.name}"
        if dataset.download is None:
            found = verify_folder(folder, Terminal(), what)
        elif not folder.posts.exists():
            raise RequestError(f"Nothing of {dataset.name} has been downloaded yet.")
        else:
            with locked(folder.root), Store(folder.posts, dataset.download.site) as store:
                found = verify_booru(store, folder, Terminal(), what)
        wrong += len(found.wrong)
        print(f"{dataset.name}: {found.files:,} pictures, {len(found.wrong):,} of them wrong")
        for path, why in found.wrong[:MOST_SHOWN]:
            print(f"  {path}: {why}")
        if found.strays:
            print(f"  {len(found.strays):,} files of which nothing is known, {found.strays[0]} say")
    if wrong:
        raise UrushiError(
            f"{wrong:,} pictures are not what they were. `urushi download {job.recipe_path}` "
            "puts right what it can."
        )


def _print_outlook(dataset: DatasetRecipe, folder: DatasetFolder) -> None:
    for line in _outlook_lines(dataset, folder):
        print(line)


def _outlook_lines(dataset: DatasetRecipe, folder: DatasetFolder) -> Iterator[str]:
    """The search is read and kept, for the download will need it; no file is fetched."""
    if dataset.folder is not None:
        from pipeline.download.folder import look

        yield f"{dataset.name}: {len(look(dataset.folder).pictures):,} pictures lie in the folder"
        return
    from pipeline.download.booru import visiting
    from pipeline.download.outlook import ahead
    from pipeline.download.patience import Patience

    with locked(folder.root), visiting(dataset, folder, Terminal(), Patience()) as visit:
        state = visit.read()
        choice, _ = visit.choose(state)
        found = ahead(
            visit.store,
            choice,
            state,
            visit.rules,
            visit.site.dialect,
            visit.asked.requests_per_second,
        )
    much = "of unknown size" if found.bytes is None else f"about {size(found.bytes)}"
    yield (
        f"{dataset.name}: {found.files:,} pictures, of which {found.to_fetch:,} are still to be "
        f"fetched: {much}, at {visit.asked.requests_per_second:g} a second at least "
        f"{duration(found.seconds)}"
    )
    for why, count in sorted(found.left.items(), key=lambda row: -row[1]):
        yield f"  {count:,}  {why}"


def _sample(job: Job, dataset: DatasetRecipe, folder: DatasetFolder, count: int) -> None:
    from pipeline.download.sample import sample_booru, sample_folder

    if dataset.folder is not None:
        from pipeline.download.stage import run

        run(Job(job.recipe_path, job.workspace, None, _only(job, dataset)), Terminal())
        print(sample_folder(folder, count, dataset.folder.most_pixels))
        return
    from pipeline.download.booru import visiting
    from pipeline.download.patience import Patience

    with locked(folder.root), visiting(dataset, folder, Terminal(), Patience()) as visit:
        print(sample_booru(visit, count))


def _only(job: Job, dataset: DatasetRecipe) -> tuple[tuple[Path, DatasetRecipe], ...]:
    return tuple(row for row in job.datasets if row[1] is dataset)
