"""`urushi compare CKPT… --prompts FILE`: the arguments of the verb."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.preview.axes import Axis
from urushi.options import WORKSPACE, WorkspaceFolder


def compare(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CKPT", help="Checkpoints: files or diffusers folders.", show_default=False
        ),
    ],
    prompts: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="A text file with one prompt a line; lines that begin with # are passed over.",
            show_default=False,
        ),
    ],
    lora: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Add this LoRA to every checkpoint; repeatable.",
            show_default=False,
        ),
    ] = None,
    strength: Annotated[
        str, typer.Option(metavar="S1,S2,…", help="Strengths of the LoRAs; 0 is without.")
    ] = "1",
    x: Annotated[
        Axis | None,
        typer.Option("--x", help="What lies along the columns.", show_default="the models"),
    ] = None,
    y: Annotated[
        Axis | None,
        typer.Option("--y", help="What changes from row to row.", show_default="seed, then prompt"),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The PNG; what was drawn goes to .json beside it.")
    ] = Path("compare.png"),
    negative: Annotated[str, typer.Option(help="The negative prompt.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of the first noise.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, max=16, help="Pictures a prompt.")] = 1,
    steps: Annotated[int, typer.Option(min=1, max=200, help="Of the sampler (DDIM).")] = 24,
    guidance: Annotated[float, typer.Option(min=1, max=30)] = 6.0,
    width: Annotated[
        int | None,
        typer.Option(help="Pixels, a multiple of 8.", show_default="512; 1024 for SDXL"),
    ] = None,
    height: Annotated[
        int | None, typer.Option(help="Pixels, a multiple of 8.", show_default="the width")
    ] = None,
    enlarge: Annotated[
        int, typer.Option(min=1, max=16, help="Show every pixel so many times larger.")
    ] = 1,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="A diffusers folder with the configurations of single files.",
            show_default="the hub's, of the models as published",
        ),
    ] = None,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """A labelled grid of checkpoints, LoRAs and strengths.

    What is drawn is kept in the workspace: run it again with more models or strengths, and only
    those are drawn.
    """
    from urushi.compare_models import Asked, compare_models, read_prompts

    compare_models(
        Asked(
            checkpoints=tuple(checkpoints),
            loras=tuple(lora or ()),
            strengths=strength,
            x=x,
            y=y,
            prompts=read_prompts(prompts),
            negative=negative,
            seed=seed,
            seeds=seeds,
            steps=steps,
            guidance=guidance,
            width=width,
            height=height,
            enlarge=enlarge,
            config=config,
        ),
        out,
        workspace,
    )
