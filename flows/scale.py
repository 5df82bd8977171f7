"""A job's `[scale]` into where its shards are made: here, in processes, or on a Dask cluster."""

from dataclasses import replace
from importlib.util import find_spec

from pipeline.artefacts.executor import Executor, Processes
from pipeline.artefacts.job import Job
from pipeline.errors import RequestError


def scaled(job: Job, workers: int | None = None) -> Job:
    """`job` with its executor; `workers` on the command line counts before the recipe.

    Raises:
        RequestError: a Dask cluster is asked for and Dask is not installed.
    """
    executor = job.executor or _executor(job, workers)
    return replace(job, executor=executor)


def _executor(job: Job, workers: int | None) -> Executor | None:
    if workers is not None:
        return Processes(workers)
    if job.build is None:
        return None
    scale = job.build.scale
    if scale.dask is not None:
        if find_spec("distributed") is None:
            raise RequestError(
                "[scale].dask needs Dask, which is not installed. Install urushi[dask], or take "
                "that line out of the recipe."
            )
        from flows.dask import Cluster

        return Cluster(scale.dask)
    return Processes(scale.workers) if scale.workers is not None else None
