"""`urushi deploy RECIPE` and `urushi serve RECIPE`: a recipe as a deployment, with a schedule.

deploy writes it for the worker of `urushi up`; serve is both in one.
"""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from flows.address import connect
from flows.generations import LEAST_NEW, ROUNDS
from flows.settings import prepare
from flows.tags import TAG, host_tag
from flows.up import PORT, up
from pipeline.artefacts.job import load_job
from pipeline.artefacts.runs import run_root
from pipeline.errors import RequestError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.deployments.runner import RunnerDeployment

Kind = Literal["data", "build", "refresh"]


@dataclass(frozen=True)
class Wish:
    """What is to be deployed, and when it runs."""

    recipe: Path
    workspace: Path
    flow: Kind | None = None
    """None: build for a build recipe, data for a dataset recipe."""
    cron: str | None = None
    """Five fields, as crontab has them."""
    timezone: str = "UTC"
    notify: tuple[str, ...] = ()
    """Prefect blocks that are told, as TYPE/NAME."""
    pool: str | None = None
    """Another work pool than that of `urushi up`: containers, say, which see the same paths."""


@dataclass(frozen=True)
class Deployed:
    """A deployment as Prefect knows it."""

    name: str
    """FLOW/NAME."""
    api: str
    run: str | None
    """The id of a run that was asked for at once."""


def deploy(wish: Wish, *, now: bool = False) -> Deployed:
    """Writes the deployment; with `now` also starts a run of it.

    Raises:
        RecipeError, RequestError: the recipe, the schedule, or no server.
        UrushiError: the server does not answer.
    """
    kind, name = _checked(wish)
    prepare(wish.workspace, standing=True)
    api = connect(wish.workspace)
    from flows.pool import CPU, GPU, POOL, connected, ensure_pool

    with connected() as client:
        made = _deployment(wish, kind, name)
        if wish.pool is None:
            ensure_pool(client)
            made.work_pool_name = POOL
            made.work_queue_name = CPU if kind == "data" else GPU
            # This Python, whatever PATH the worker has; and no look for requirements to install.
            made.job_variables = {"command": f"{shlex.quote(sys.executable)} -m prefect.engine"}
        else:
            _require_pool(client, wish.pool)
            made.work_pool_name = wish.pool
            # Where its runs live no doctor of this machine can see.
            made.tags = [TAG]
        _compare(wish.workspace, made).apply()
        identity: Any = made.apply()
        run = client.create_flow_run_from_deployment(identity) if now else None
    return Deployed(f"{kind}/{name}", api, str(run.id) if run else None)


def _require_pool(client: "SyncPrefectClient", name: str) -> None:
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        raise RequestError(
            f"There is no work pool {name}. `prefect work-pool create {name} --type …` makes it; "
            "packaging/ has templates for Docker and Kubernetes."
        ) from None


def serve(wish: Wish, say: Callable[[str], None], port: int = PORT) -> None:
    """`urushi up` with `wish` deployed; until SIGINT or SIGTERM.

    Raises:
        RecipeError, RequestError: the recipe, the schedule or the port.
        BusyError: `urushi up` runs for this workspace already.
        UrushiError: the server does not start.
    """
    kind, name = _checked(wish)

    def ready() -> None:
        deploy(wish)
        say(f"{kind}/{name} is served. Ctrl-C ends it.")

    up(wish.workspace, say, port, ready=ready)


def _checked(wish: Wish) -> tuple[Kind, str]:
    job = load_job(wish.recipe, wish.workspace)
    kind: Kind = wish.flow or ("data" if job.build is None else "build")
    if kind != "data" and job.build is None:
        raise RequestError(f"{wish.recipe} is a dataset recipe; the flow {kind} needs a build's.")
    if wish.cron is not None and len(wish.cron.split()) != 5:
        raise RequestError(
            f"--cron {wish.cron!r} has {len(wish.cron.split())} fields and not 5: minute, hour, "
            'day, month, weekday. "0 2 * * *" is every night at two.'
        )
    try:
        ZoneInfo(wish.timezone)
    except (ZoneInfoNotFoundError, ValueError):
        raise RequestError(
            f"There is no time zone {wish.timezone}. Name one such as Europe/Berlin or UTC."
        ) from None
    return kind, run_root(job).name


def _deployment(wish: Wish, kind: Kind, name: str) -> "RunnerDeployment":
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.types.entrypoint import EntrypointType
    from pydantic import ValidationError

    from flows import entry

    try:
        schedule = CronSchedule(cron=wish.cron, timezone=wish.timezone) if wish.cron else None
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RequestError(f"--cron {wish.cron!r} is not a schedule: {problem}") from None
    parameters: dict[str, Any] = {
        "recipe": str(wish.recipe.resolve()),
        "workspace": str(wish.workspace.resolve()),
        "notify": list(wish.notify),
    }
    if kind == "refresh":
        # Spelled out, so that the interface offers them, and a run can be told by them.
        parameters |= {"least_new": LEAST_NEW, "rounds": ROUNDS}
    made: Any = entry.FLOWS[kind].to_deployment(
        name=name,
        schedule=schedule,
        parameters=parameters,
        tags=[TAG, host_tag()],
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    return made  # type: ignore[no-any-return]


def _compare(workspace: Path, beside: "RunnerDeployment") -> "RunnerDeployment":
    """The page of all builds, to be asked for in the interface; done where `beside` is."""
    from prefect.types.entrypoint import EntrypointType

    from flows.entry import compare
    from flows.pool import CPU, POOL

    made: Any = compare.to_deployment(
        name=workspace.resolve().name,
        parameters={"workspace": str(workspace.resolve()), "builds": []},
        tags=beside.tags,
        entrypoint_type=EntrypointType.MODULE_PATH,
        work_pool_name=beside.work_pool_name,
        work_queue_name=CPU if beside.work_pool_name == POOL else None,
        job_variables=beside.job_variables,
    )
    return made  # type: ignore[no-any-return]
