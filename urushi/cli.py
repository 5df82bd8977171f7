"""The command line: every verb with its arguments, and errors into messages and exit codes.

Verbs import what they need when they run, so that `urushi --help` answers at once.

Exit codes: 0 done; 1 failed; 2 the request is wrong; 3 no room left on the disk, nothing lost;
4 the gate stopped the build; 5 a round waits for your decision; 130 interrupted, resumable.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from merge.errors import MergeError
from pipeline.errors import RequestError, UrushiError, memory_refused
from urushi import lora, standing
from urushi.compare import compare
from urushi.mix import mix
from urushi.options import WORKSPACE, Build, Force, NoKeep, Recipe, Workers, WorkspaceFolder

INTERRUPTED = 130
LESS_MEMORY = (
    "What was finished stands. Lower the batch_size of the recipe's section for this stage, or "
    "close other programs, and run the same command again."
)

app = typer.Typer(
    name="urushi",
    help="Builds an image model in rounds: trains a thin coat, merges it, lays the next one.",
    no_args_is_help=True,
    add_completion=False,
    # Rich would take longer to import than everything else here together.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The program. Ends the process with the exit code."""
    # Small models are many short steps: threads that sleep between them take twice as long (1.6
    # steps a second against 3.0 on two cores), and threads that spin for long starve a machine that
    # has other work. So they spin for some microseconds. Read when torch is first imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Processes that we start look for no modules in the folder that we stand in: a script of the
    # user's may be called random.py.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        app()
    except (UrushiError, MergeError) as error:
        print(f"urushi: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say_interrupted()
        sys.exit(INTERRUPTED)
    except Exception as error:
        refusal = memory_refused(error)
        if refusal is None:
            raise
        print(f"urushi: There is not enough memory ({refusal}). {LESS_MEMORY}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as end:
        # Typer turns Ctrl-C into this code.
        if end.code == INTERRUPTED:
            _say_interrupted()
        raise


def _say_interrupted() -> None:
    print("\nurushi: interrupted. Run the same command again to go on.", file=sys.stderr)


@app.command()
def demo(workspace: WorkspaceFolder = WORKSPACE) -> None:
    """The whole job on an embedded booru and a tiny model.

    A few minutes, no GPU, nothing from the internet; every part is the real part.
    """
    from urushi.demo import run_demo

    run_demo(workspace)


@app.command()
def booru(
    port: Annotated[int, typer.Option(help="The loopback port to listen on.")] = 8642,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """The embedded booru alone, until Ctrl-C."""
    from demo.booru import serve

    serve(port, on_ready=lambda url: print(f"{url}/posts.json  (Ctrl-C ends it)", flush=True))


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Of the dataset and the build.", metavar="NAME")],
    pictures: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Use pictures that you have, not a booru's."),
    ] = None,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Writes NAME.toml and NAME_pictures.toml to start from."""
    from urushi.new import write_recipes

    write_recipes(name, Path.cwd(), pictures)


@app.command()
def check(recipe: Recipe, workspace: WorkspaceFolder = WORKSPACE) -> None:
    """Validates a recipe and warns of what is known not to work."""
    from urushi.check import print_check

    print_check(recipe, workspace)


@app.command()
def plan(recipe: Recipe, workspace: WorkspaceFolder = WORKSPACE) -> None:
    """Rounds, steps, hours of download and disk, before anything runs."""
    from urushi.plan import print_plan

    print_plan(recipe, workspace)


@app.command()
def run(
    recipe: Recipe,
    force: Force = False,
    more: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Lay N more rounds on a finished build."),
    ] = None,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Everything a recipe asks; run it again and it goes on."""
    from urushi.run import run_all

    run_all(recipe, workspace, force=force, more=more)


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """What is done, what runs, what failed and why."""
    from urushi.status import print_status

    print_status(workspace, as_json)


@app.command()
def schema(
    kind: Annotated[
        Literal["dataset", "build"], typer.Argument(help="Which kind of recipe.")
    ] = "build",
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """The JSON Schema of a kind of recipe, for editors."""
    from urushi.schema import print_schema

    print_schema(kind)


@app.command()
def download(
    recipe: Recipe,
    refresh: Annotated[
        bool,
        typer.Option("--refresh", help="Ask for newer posts, and what became of the known ones."),
    ] = False,
    retry: Annotated[
        bool,
        typer.Option("--retry", help="Try every file once more that did not come, or was no good."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every picture again; ask no site.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Read the search and say what it will take; fetch no file."),
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Draw N of the pictures into one sheet."),
    ] = None,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """One stage: a booru query or a folder into originals."""
    from urushi.download import download as run

    run(
        recipe,
        workspace,
        refresh=refresh,
        retry=retry,
        verify=verify,
        dry_run=dry_run,
        sample=sample,
    )


@app.command()
def caption(
    recipe: Recipe,
    workspace: WorkspaceFolder = WORKSPACE,
    diff: Annotated[
        bool, typer.Option("--diff", help="Only show what the rules would change.")
    ] = False,
    explain: Annotated[
        str | None,
        typer.Option(metavar="MD5", help="Only show every rule's effect on one picture."),
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Only count tags, lengths and near-synonyms.")
    ] = False,
    export: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            metavar="kohya FOLDER",
            help="Only write pictures with .txt captions, as kohya's scripts read them.",
        ),
    ] = None,
) -> None:
    """One stage: tags, scores and rules into captions."""
    asked = [diff, explain is not None, stats, export is not None]
    if sum(asked) > 1:
        raise RequestError("Give one of --diff, --explain, --stats and --export.")
    if not any(asked):
        from urushi.run import run_stage

        run_stage("caption", recipe, workspace)
        return
    from urushi import caption as looks

    if diff:
        looks.print_difference(recipe, workspace)
    elif explain is not None:
        looks.print_explanation(recipe, explain, workspace)
    elif stats:
        looks.print_statistics(recipe, workspace)
    elif export is not None:
        looks.export_captions(recipe, *export, workspace)


@app.command()
def resize(
    recipe: Recipe,
    show: Annotated[
        bool,
        typer.Option("--show", help="Only show buckets, counts and losses, with a histogram."),
    ] = False,
    no_keep: NoKeep = False,
    workers: Workers = None,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """One stage: originals into pictures of the bucket ladder."""
    if show:
        from urushi.resize import print_buckets

        print_buckets(recipe, workspace)
        return
    from urushi.run import run_stage

    run_stage("resize", recipe, workspace, workers=workers, keep=not no_keep)


@app.command()
def cache(
    recipe: Recipe,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every shard first; damaged ones are made anew.")
    ] = False,
    why: Annotated[bool, typer.Option("--why", help="Only say what is stale, and why.")] = False,
    no_keep: NoKeep = False,
    workers: Workers = None,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """One stage: pictures and captions into shards for training."""
    if why:
        from urushi.cache import print_reasons

        print_reasons(recipe, workspace)
        return
    if verify:
        from urushi.cache import verify_shards

        verify_shards(recipe, workspace)
    from urushi.run import run_stage

    run_stage("cache", recipe, workspace, workers=workers, keep=not no_keep)


@app.command()
def train(recipe: Recipe, force: Force = False, workspace: WorkspaceFolder = WORKSPACE) -> None:
    """One stage: the next round's LoRA."""
    from urushi.run import run_stage

    run_stage("train", recipe, workspace, force=force)


@app.command()
def preview(recipe: Recipe, workspace: WorkspaceFolder = WORKSPACE) -> None:
    """One stage: sample grids of all checkpoints, the report."""
    from urushi.run import run_stage

    run_stage("preview", recipe, workspace)


@app.command()
def merge(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE", help="The checkpoint: a file or diffusers folder.", show_default=False
        ),
    ],
    loras: Annotated[
        list[Path],
        typer.Argument(
            metavar="LORA", help="kohya, diffusers, PEFT or LyCORIS files.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The checkpoint to write.", show_default=False)
    ],
    strength: Annotated[
        list[str] | None,
        typer.Option(
            metavar="S",
            help="A factor per LoRA in their order, repeated or with commas; one for all will do. "
            "Or apart by network: unet=1,te=0.5 (te1, te2).",
            show_default="1",
        ),
    ] = None,
    blocks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="B",
            help="Block weights per LoRA, repeated, or one for all: a preset such as OUTALL, a "
            "list of 12, 17, 20 or 26 numbers, or IN04-07=1,OUT03-06=0.5,rest=0.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32", "fp16", "bf16", "fp32"] | None,
        typer.Option(help="Of all model weights; each one's own if not given."),
    ] = None,
    allow_unmatched: Annotated[
        bool, typer.Option("--allow-unmatched", help="Leave out what finds no weight, and say so.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="The output may take the place of an input.")
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write everything about every layer as JSON."),
    ] = None,
    sha256: Annotated[
        bool, typer.Option("--sha256", help="Also say the output's sha256 (slow).")
    ] = False,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Adds LoRAs to a checkpoint.

    A float32 sum from the base, one cast at the end, in the base's layout.
    """
    from urushi.merge import Options, merge_files

    options = Options(dtype, allow_unmatched, force, report, sha256)
    merge_files(base, loras, strength or ["1"], blocks or [], out, options, workspace)


app.command()(mix)
app.command()(compare)
app.add_typer(lora.app, name="lora")
for verb in standing.VERBS:
    app.command()(verb)


@app.command()
def credits(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET", help="A dataset's name, or a recipe.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A .md, .csv or .json file.", show_default="print it"),
    ] = None,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Who made the pictures of a dataset, with their sources."""
    from urushi.credits import write_credits

    write_credits(dataset, workspace, out)


@app.command()
def rebuild(
    build: Build,
    number: Annotated[
        int, typer.Option("--round", metavar="K", help="Up to which round.", show_default=False)
    ],
    strengths: Annotated[
        str | None,
        typer.Option(
            metavar="S1,S2,…",
            help="Other strengths, one for each round that is merged.",
            show_default=False,
        ),
    ] = None,
    drop: Annotated[
        list[int] | None,
        typer.Option(metavar="K", help="Leave this round out; repeatable.", show_default=False),
    ] = None,
    final: Annotated[
        bool, typer.Option("--final", help="At the strengths that the final checkpoint has.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default="BUILD-round-K.safetensors"),
    ] = None,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Makes a round's checkpoint again, bit for bit.

    From the origin and the rounds' LoRAs; also at other strengths, or without some rounds.
    """
    from urushi.rebuild import rebuild_round

    rebuild_round(build, number, strengths, drop or [], out, workspace, final=final)


@app.command()
def export(
    build: Build,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="The model to write.", show_default=False),
    ],
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"], typer.Option(help="Of all weights.")
    ] = "float16",
    vae: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A VAE in the place of the origin's: a file, or a diffusers folder.",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        bool, typer.Option("--folder", help="A diffusers folder of a single-file model.")
    ] = False,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Writes the final model in another dtype, VAE or layout.

    Summed from the origin and cast once; loaded again with diffusers before it is given.
    """
    from urushi.export import export_build

    export_build(build, out, dtype, vae, folder, workspace)


@app.command()
def reweigh(build: Build, workspace: WorkspaceFolder = WORKSPACE) -> None:
    """Fits all strengths of a finished build together.

    On the held-out pictures: chosen on one half of them, told on the other.
    """
    from urushi.reweigh import reweigh as run

    run(build, workspace)


@app.command()
def refit(
    recipe: Recipe,
    loras: Annotated[
        list[Path],
        typer.Argument(
            metavar="LORA", help="Checkpoints of one training, in order.", show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The LoRA to write.", show_default=False)
    ],
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Makes one better LoRA of the checkpoints of a LoRA's training.

    What each added to the one before gets a strength, fitted on RECIPE's held-out pictures.
    """
    from urushi.refit import refit as run

    run(recipe, loras, out, workspace)


@app.command()
def fork(
    build: Build,
    new: Annotated[
        str, typer.Argument(help="The new build's name.", metavar="NEW", show_default=False)
    ],
    number: Annotated[
        int,
        typer.Option("--round", metavar="K", help="The last round to share.", show_default=False),
    ],
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Another build, and its recipe, from this one's first rounds."""
    from urushi.fork import fork as run

    run(build, number, new, workspace, Path.cwd())


@app.command()
def selftest(
    device: Annotated[
        Literal["cuda", "cpu"], typer.Option(help="What to train on.", show_default=False)
    ],
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT", help="Your base, not the shipped tiny one.", show_default=False
        ),
    ] = None,
    workspace: WorkspaceFolder = WORKSPACE,
) -> None:
    """Checks training here: precisions, resume, speed, memory."""
    from urushi.selftest import run_selftest

    run_selftest(device, base)


@app.command()
def report(build: Build, workspace: WorkspaceFolder = WORKSPACE) -> None:
    """Writes a build's report.html again."""
    from urushi.report import rewrite_report

    rewrite_report(build, workspace)
