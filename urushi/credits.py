"""`urushi credits`: who made the pictures of a dataset, as Markdown, CSV or JSON."""

from pathlib import Path

from pipeline.artefacts.files import write_text
from pipeline.artefacts.job import load_job
from pipeline.artefacts.workspace import DatasetFolder, Workspace
from pipeline.errors import RequestError


def write_credits(dataset: str, workspace: Path, out: Path | None) -> None:
    """Prints the credits of `dataset`, or writes them to `out` in the form that its name says.

    Raises:
        RequestError: there is no such dataset, or `out` is none of .md, .csv and .json.
        UrushiError: its pictures are not here yet.
    """
    from pipeline.download.credits import as_csv, as_json, as_markdown, credits_of, merged

    forms = {".md": as_markdown, ".csv": as_csv, ".json": as_json}
    form = as_markdown if out is None else forms.get(out.suffix.lower())
    if form is None:
        raise RequestError(f"--out {out} should end in one of {', '.join(forms)}.")
    credits = merged(credits_of(folder) for folder in _folders(dataset, workspace))
    text = form(credits)
    if out is None:
        print(text, end="")
        return
    write_text(out.absolute(), text)
    pictures = len({source.md5 for credit in credits for source in credit.sources})
    print(f"{out}: {len(credits):,} artists of {pictures:,} pictures")


def _folders(dataset: str, workspace: Path) -> list[DatasetFolder]:
    if dataset.endswith(".toml"):
        job = load_job(Path(dataset), workspace)
        return [job.dataset_folder(recipe) for _, recipe in job.datasets]
    datasets = workspace / "datasets"
    known = sorted(p.name for p in datasets.iterdir()) if datasets.is_dir() else []
    if dataset not in known:
        listed = f"There are: {', '.join(known)}." if known else "There are none yet."
        raise RequestError(f"There is no dataset {dataset} in {workspace}. {listed}")
    return [Workspace(workspace.resolve()).dataset(dataset)]
