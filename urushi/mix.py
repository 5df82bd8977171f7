"""`urushi mix A B --alpha 0.3 --out FILE`: a checkpoint from others. Arguments only.

What it does is in urushi/mix_files.py, which is imported when it runs.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from urushi.options import WORKSPACE, WorkspaceFolder


def mix(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="The checkpoint to write.", show_default=False),
    ],
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="A B", help="Checkpoints, single files of one family.", show_default=False
        ),
    ] = None,
    third: Annotated[
        Path | None,
        typer.Option("--with", metavar="C", help="What is taken from B.", show_default=False),
    ] = None,
    mode: Annotated[
        Literal["sum", "difference"] | None,
        typer.Option(
            help="A·(1-alpha) + B·alpha, or A + alpha·(B - C).",
            show_default="difference if there is a C",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="The factor, where nothing else is said.", show_default=False
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,…", help="For any number of models: A·W + B·W + …", show_default=False
        ),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            metavar="B",
            help="Alpha by UNet block: IN04-07=0.3,OUT03=1,BASE=0, or 25 or 26 numbers (SDXL: 19, "
            "20). BASE is text encoders and VAE.",
            show_default=False,
        ),
    ] = None,
    te: Annotated[
        float | None,
        typer.Option("--te", metavar="X", help="Alpha of the text encoders.", show_default=False),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            metavar="V",
            help="Whose VAE: A, B, C or a file, also one of a VAE alone. Or its alpha.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Steps from a TOML file, in the place of all above.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32", "fp16", "bf16", "fp32"] | None,
        typer.Option(help="Of all model weights; as in the first model if not given."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="The output may take the place of a model.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what was done as JSON.", show_default=False),
    ] = None,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Mixes checkpoints: sums and differences, by block.

    A float32 sum, one cast at the end, in the layout of the first model.
    """
    from urushi.mix_files import Asked, mix_files

    asked = Asked(tuple(models or ()), third, mode, alpha, weights, blocks, te, vae, recipe, dtype)
    mix_files(asked, out, force, report, workspace)
