"""Shards on a Dask cluster of two processes on loopback, one of which is killed."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from flows.scale import scaled
from pipeline.artefacts.executor import Advance, Processes, cores
from pipeline.artefacts.job import load_job
from pipeline.errors import DiskFullError, RequestError

distributed = pytest.importorskip("distributed")

from flows.dask import Cluster  # noqa: E402 - only where Dask is installed


@dataclass(frozen=True)
class Chore:
    """Writes its number and the process that did it, slowly; the first try of `fatal` dies."""

    folder: Path
    number: int
    fatal: bool = False
    full: bool = False

    @property
    def count(self) -> int:
        return 3


def do(chore: Chore, advance: Advance) -> None:
    trace = chore.folder / f"tried-{chore.number}"
    if chore.full:
        raise DiskFullError("No room left.")
    if chore.fatal and not trace.exists():
        trace.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    (chore.folder / f"{chore.number}.txt").write_text(str(os.getpid()))
    advance(chore.count)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    # Workers import this module by its path: tests are no package.
    import cloudpickle

    cloudpickle.register_pickle_by_value(__import__("sys").modules[__name__])
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
        silence_logs=60,
    ) as made:
        yield made


def test_every_shard_is_made_once_though_a_worker_is_killed(cluster: Any, tmp_path: Path) -> None:
    chores = [Chore(tmp_path, number, fatal=number == 3) for number in range(12)]
    counts: list[int] = []
    Cluster(cluster.scheduler_address).run(do, chores, counts.append)
    assert sorted(p.name for p in tmp_path.glob("*.txt")) == sorted(
        f"{number}.txt" for number in range(12)
    )
    assert counts == [3] * 12
    workers = {p.read_text() for p in tmp_path.glob("*.txt")}
    assert str(os.getpid()) not in workers
    assert (tmp_path / "tried-3").read_text() not in workers


def test_an_error_keeps_its_kind_and_stops_the_rest(cluster: Any, tmp_path: Path) -> None:
    chores = [Chore(tmp_path, 0, full=True), *(Chore(tmp_path, n) for n in range(1, 4))]
    with pytest.raises(DiskFullError, match="No room left"):
        Cluster(cluster.scheduler_address).run(do, chores, lambda count: None)


def test_no_scheduler_is_a_wrong_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("flows.dask.PATIENCE", 1)
    with pytest.raises(RequestError, match=r"No Dask scheduler answers at tcp://127.0.0.1:9"):
        Cluster("tcp://127.0.0.1:9").run(do, [Chore(tmp_path, 0)], lambda count: None)


def test_the_recipe_or_the_command_line_says_where(tmp_path: Path) -> None:
    (tmp_path / "set.toml").write_text('name = "set"\n[folder]\npath = "."\n')
    recipe = tmp_path / "build.toml"
    text = (
        'name = "b"\n[base]\ncheckpoint = "b.safetensors"\n[dataset]\nrecipe = "set.toml"\n'
        "[rounds]\ncount = 1\nepochs = [1]\n"
    )
    recipe.write_text(text)
    assert scaled(load_job(recipe, tmp_path)).executor is None
    recipe.write_text(text + "[scale]\nworkers = 3\n")
    executor = scaled(load_job(recipe, tmp_path)).executor
    assert isinstance(executor, Processes) and executor.processes == 3
    recipe.write_text(text + '[scale]\ndask = "tcp://127.0.0.1:8786"\n')
    job = load_job(recipe, tmp_path)
    executor = scaled(job).executor
    assert isinstance(executor, Cluster) and executor.address == "tcp://127.0.0.1:8786"
    executor = scaled(job, workers=2).executor
    assert isinstance(executor, Processes) and executor.processes == 2
    kept = Processes(cores())
    assert scaled(replace(job, executor=kept)).executor is kept
