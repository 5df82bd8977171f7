"""Arguments that many verbs take, as typer reads them."""

from pathlib import Path
from typing import Annotated

import typer

Recipe = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe's .toml file.", show_default=False)
]
Build = Annotated[
    str,
    typer.Argument(metavar="BUILD", help="A build's name, or its recipe.", show_default=False),
]
WorkspaceFolder = Annotated[
    Path,
    typer.Option(
        "--workspace",
        metavar="FOLDER",
        envvar="URUSHI_WORKSPACE",
        help="Where pictures, builds and everything between them lie.",
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Go on with a half-trained round though its settings were changed."
    ),
]
NoKeep = Annotated[
    bool,
    typer.Option(
        "--no-keep",
        help="Store no resized pictures: the cache reads the originals. For good: [resize].keep.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Processes on this machine; [scale] in the recipe says so for good.",
        show_default="one per core or GPU",
    ),
]
WORKSPACE = Path("workspace")
