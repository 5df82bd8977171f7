from collections.abc import Callable
from pathlib import Path

import pytest

from flows.work import at_work, data_parts
from pipeline.artefacts.job import Job, Outcome, load_job
from pipeline.artefacts.runs import finished, read_run, run_fingerprint, run_root
from pipeline.progress import Progress, Silent

WriteRecipe = Callable[..., Path]


@pytest.fixture
def job(write_recipe: WriteRecipe, tmp_path: Path) -> Job:
    return load_job(write_recipe(), tmp_path / "workspace")


def test_a_builds_data_alone_does_not_finish_the_build(job: Job) -> None:
    with at_work(job, Silent(), parts=()) as work:
        assert [part.name for part in work.parts] == [part.name for part in data_parts(job)]
    assert finished(run_root(job), run_fingerprint(job)) is None
    assert read_run(run_root(job)) is None


def test_nor_does_its_failure_undo_what_the_build_said(job: Job) -> None:
    with at_work(job, Silent(), parts=(_Nothing(),)):
        pass
    before = finished(run_root(job), run_fingerprint(job))
    assert before is not None
    with pytest.raises(KeyboardInterrupt), at_work(job, Silent(), parts=()):
        raise KeyboardInterrupt
    assert finished(run_root(job), run_fingerprint(job)) == before


def test_a_datasets_own_run_is_told(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe = write_recipe().with_name("pictures.toml")
    job = load_job(recipe, tmp_path / "workspace")
    with at_work(job, Silent()):
        pass
    assert finished(run_root(job), run_fingerprint(job)) is not None


class _Nothing:
    """A part with nothing to do."""

    name = "nothing"

    @staticmethod
    def run(job: Job, progress: Progress) -> Outcome:
        return Outcome("nothing", True, "")
