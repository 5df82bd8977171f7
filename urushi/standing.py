"""`urushi up`, `deploy`, `serve`, `doctor`, `drain`, `approve`: builds of days, on a schedule."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipeline.errors import RequestError
from urushi.options import WORKSPACE, Build, Recipe, WorkspaceFolder

Cron = Annotated[
    str | None,
    typer.Option(
        metavar="CRON", help='When it runs: "0 2 * * *" is every night at two.', show_default=False
    ),
]
Timezone = Annotated[
    str, typer.Option(metavar="ZONE", help="Of --cron, such as Europe/Berlin; minds summer time.")
]
Flow = Annotated[
    Literal["data", "build", "refresh"] | None,
    typer.Option(
        "--flow",
        help="What runs; refresh asks for newer pictures, and lays rounds when enough have come.",
        show_default="build, or data for a dataset recipe",
    ),
]
Notify = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TYPE/NAME",
        help="A notification block of Prefect's that is told of ends; repeatable.",
        show_default=False,
    ),
]
Port = Annotated[int, typer.Option(help="The loopback port of the server and its UI.")]
Pool = Annotated[
    str | None,
    typer.Option(
        metavar="POOL",
        help="Another work pool than that of `urushi up`, such as one for containers.",
        show_default=False,
    ),
]


def up(
    port: Port = 4200,
    worker: Annotated[
        bool, typer.Option("--worker/--no-worker", help="Run scheduled runs here.")
    ] = True,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Prefect's server, a worker and the doctor, until Ctrl-C.

    Where PREFECT_API_URL is set, that server is used and none started. What was interrupted goes
    on at the next start.
    """
    _require_prefect()
    from flows.up import up as run

    run(workspace, _say, port, work=worker)


def deploy(
    recipe: Recipe,
    cron: Cron = None,
    timezone: Timezone = "UTC",
    flow: Flow = None,
    notify: Notify = None,
    pool: Pool = None,
    now: Annotated[bool, typer.Option("--now", help="Also start a run at once.")] = False,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Writes a recipe as a deployment, for the worker of `urushi up`.

    The same recipe again replaces the deployment, and its schedule.
    """
    _require_prefect()
    from flows.deploy import Wish
    from flows.deploy import deploy as write

    wish = Wish(recipe, workspace, flow, cron, timezone, tuple(notify or ()), pool)
    made = write(wish, now=now)
    print(f"deployment  {made.name}")
    print(f"interface   {made.api.removesuffix('/api')}/deployments")
    if made.run is not None:
        print(f"run         {made.run}")
    else:
        print(f"start it    prefect deployment run {made.name}   (or --now)")


def serve(
    recipe: Recipe,
    cron: Cron = None,
    timezone: Timezone = "UTC",
    flow: Flow = None,
    notify: Notify = None,
    port: Port = 4200,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """The quick start: `up` and `deploy` in one, until Ctrl-C.

    The deployment stays; `urushi up` goes on with it.
    """
    _require_prefect()
    from flows.deploy import Wish
    from flows.deploy import serve as run

    run(Wish(recipe, workspace, flow, cron, timezone, tuple(notify or ())), _say, port)


def doctor(workspace: WorkspaceFolder = WORKSPACE) -> None:
    """Brings back runs whose process is gone; once."""
    _connect(workspace)
    from flows.doctor import examine
    from pipeline.artefacts.workspace import Workspace

    findings = examine(Workspace(workspace.resolve()))
    for finding in findings:
        print(finding)
    if not findings:
        print("All is well.")


def drain(
    wait: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="How long training may take to save."),
    ] = 300.0,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Ends the scheduled runs here gently, to be gone on with."""
    _connect(workspace)
    from flows.drain import drain as run
    from pipeline.artefacts.workspace import Workspace

    stopped = run(Workspace(workspace.resolve()), _say, wait)
    for name in stopped:
        print(f"{name}: saved; goes on with the next `urushi up`")
    if not stopped:
        print("Nothing ran here. The pool is paused until the next `urushi up`.")


def approve(
    build: Build,
    decision: Annotated[
        Literal["continue", "redo", "stop"],
        typer.Argument(help="Of the round that waits.", show_default=False),
    ],
    strength: Annotated[
        float | None,
        typer.Option(metavar="S", help="Merge the round at this strength.", show_default=False),
    ] = None,
    lr_scale: Annotated[
        float,
        typer.Option(metavar="F", help="Factor on the later rounds' rate; with redo, on its own."),
    ] = 1.0,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Answers a build that waits for a word after a round."""
    from urushi.approve import answer

    answer(build, decision, strength, lr_scale, workspace)


def _connect(workspace: Path) -> None:
    _require_prefect()
    from flows.address import connect
    from flows.settings import prepare

    prepare(workspace)
    connect(workspace)


def _require_prefect() -> None:
    from flows.run import has_prefect

    if not has_prefect():
        raise RequestError(
            "This verb needs Prefect, which is not installed. Install urushi with it; builds by "
            "hand need none: urushi download, caption, resize, cache, train, preview."
        )


def _say(text: str) -> None:
    print(text, flush=True)


VERBS: tuple[Callable[..., Any], ...] = (up, deploy, serve, doctor, drain, approve)
