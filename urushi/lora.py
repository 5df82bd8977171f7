"""`urushi lora info|resize|extract|concat|convert`: LoRA files by hand. Arguments only.

What they do is in urushi/lora_tools.py, which is imported when one of them runs.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.errors import RequestError
from urushi.options import WORKSPACE, WorkspaceFolder

app = typer.Typer(
    help="Looks at LoRA files, and makes others of them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Lora = Annotated[
    Path,
    typer.Argument(
        metavar="LORA",
        help="A kohya, diffusers or PEFT file, or adapter folder.",
        show_default=False,
    ),
]
Out = Annotated[
    Path,
    typer.Option("--out", metavar="FILE", help="The LoRA to write.", show_default=False),
]
Rank = Annotated[
    int | None,
    typer.Option(metavar="R", help="At most so many ranks a layer.", show_default=False),
]
Energy = Annotated[
    float | None,
    typer.Option(
        metavar="E",
        help="As few ranks as keep this share of a layer's squared norm, such as 0.95.",
        show_default=False,
    ),
]
Ratio = Annotated[
    float | None,
    typer.Option(
        "--sv-ratio",
        metavar="X",
        help="The singular values of at least the largest / X.",
        show_default=False,
    ),
]
ConvRank = Annotated[
    int | None,
    typer.Option(
        metavar="R", help="Another most for 3x3 convolutions.", show_default="as the rank"
    ),
]
Dtype = Literal["float16", "bfloat16", "float32", "fp16", "bf16", "fp32"]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command()
def info(lora: Lora, as_json: AsJson = False, workspace: WorkspaceFolder = WORKSPACE) -> None:
    """Says what a LoRA is: family, layout, ranks, alphas, norms, metadata."""
    from urushi.lora_tools import print_info

    print_info(lora, as_json, workspace)


@app.command()
def resize(
    lora: Lora,
    out: Out,
    rank: Rank = None,
    energy: Energy = None,
    sv_ratio: Ratio = None,
    conv_rank: ConvRank = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the output; each layer's own if not given.")
    ] = None,
    as_json: AsJson = False,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Lowers a LoRA's ranks, keeping as much of each layer as they hold.

    --rank alone, or --energy or --sv-ratio with --rank as the most.
    """
    from urushi.lora_tools import Kept, resize_file

    resize_file(lora, out, Kept(rank, energy, sv_ratio, conv_rank), dtype, as_json, workspace)


@app.command()
def extract(
    tuned: Annotated[
        Path,
        typer.Argument(
            metavar="TUNED|BUILD",
            help="The trained checkpoint; or alone, a build: its name, or its recipe.",
            show_default=False,
        ),
    ],
    out: Out,
    base: Annotated[
        Path | None,
        typer.Argument(metavar="BASE", help="What it was made from.", show_default=False),
    ] = None,
    rank: Rank = None,
    energy: Energy = None,
    sv_ratio: Ratio = None,
    conv_rank: ConvRank = None,
    networks: Annotated[
        str, typer.Option(metavar="N,N", help="Of unet, te1, te2 (te is both).")
    ] = "unet,te",
    to: Annotated[
        Literal["kohya", "diffusers"], typer.Option(help="Layout of the output.")
    ] = "kohya",
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Of the output.", show_default="float16; float32 of a build's exact sum"),
    ] = None,
    as_json: AsJson = False,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Makes the LoRA that turns BASE into TUNED, as near as its ranks allow; or BUILD's as one.

    SD 1.5 and SDXL, single files and folders. --conv-rank 0 leaves 3x3 convolutions out. Of a
    build, all rounds at their final strengths: exact, or cut to --rank, --energy or --sv-ratio.
    """
    from urushi.lora_tools import Kept, extract_files

    kept = Kept(rank, energy, sv_ratio, conv_rank)
    if base is not None:
        extract_files(tuned, base, out, kept, networks, to, dtype or "float16", as_json, workspace)
        return
    from urushi.lora_chain import extract_chain

    if (networks, to) != ("unet,te", "kohya"):
        raise RequestError(
            "A build's LoRA has all its layers, in kohya's layout: leave --networks and --to away. "
            "`urushi lora convert` respells it."
        )
    extract_chain(str(tuned), out, kept, dtype, as_json, workspace)


@app.command()
def concat(
    loras: Annotated[list[Path], typer.Argument(metavar="LORA", show_default=False)],
    out: Out,
    strength: Annotated[
        list[str] | None,
        typer.Option(
            metavar="S",
            help="A factor per LoRA in their order, repeated or with commas; one for all will do.",
            show_default="1",
        ),
    ] = None,
    blocks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="B", help="Block weights, as `urushi merge` takes them.", show_default=False
        ),
    ] = None,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Sums several LoRAs into one, exactly; the ranks add up. `resize` makes it smaller."""
    from urushi.lora_tools import concat_files

    concat_files(loras, strength or ["1"], blocks or [], out, workspace)


@app.command()
def convert(
    lora: Lora,
    out: Out,
    to: Annotated[
        Literal["kohya", "diffusers"],
        typer.Option(help="Layout of the output.", show_default=False),
    ],
    family: Annotated[
        Literal["sd15", "sdxl"] | None,
        typer.Option(help="Where the file's names do not say it.", show_default=False),
    ] = None,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Respells a LoRA for other programs; no factor changes."""
    from urushi.lora_tools import convert_file

    convert_file(lora, out, to, family, workspace)
