"""`urushi lora extract BUILD`: all rounds of a build as one LoRA, exactly or cut to a rank."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from merge import concat
from merge.resize import resize
from pipeline.artefacts.files import translated
from pipeline.artefacts.ledger import read_ledger
from pipeline.artefacts.strength import told
from pipeline.artefacts.workspace import Workspace
from pipeline.errors import RequestError
from pipeline.rounds.rebuild import Plan, plan
from urushi.builds import build_name
from urushi.lora_tools import Kept, as_text, render_resize
from urushi.progress import Counted, Terminal
from urushi.table import size


@dataclass(frozen=True)
class Exact:
    """A build's LoRA as it was written whole."""

    out: Path
    sum: str
    size: int
    """Bytes."""


def extract_chain(
    build: str, out: Path, kept: Kept, dtype: str | None, as_json: bool, workspace: Path
) -> None:
    """Writes one LoRA that is what the final checkpoint has over the origin, and says what it kept.

    Strengths are folded in, so that it is used at strength 1. Where nothing is said of what to
    keep, it is the rounds side by side, exact in float32, their ranks added up.

    Raises:
        RequestError: no such build, no round was merged, or the output is inside the build.
        UrushiError: a LoRA or the origin is missing or was changed.
        MergeError: a number out of its range, or the output cannot be written.
    """
    place = Workspace(workspace.resolve())
    folder = place.build(build_name(build, workspace))
    ledger = read_ledger(folder.ledger)
    if not ledger.rounds:
        raise RequestError(f"No round of {ledger.build} is merged yet: there is nothing to write.")
    if folder.root in out.resolve().parents:
        raise RequestError(
            f"--out {out} is inside the build, whose files are made by `urushi run` alone. "
            "Choose another place."
        )
    whole = kept.rank is None and kept.energy is None and kept.ratio is None
    if whole and (dtype is not None or kept.conv_rank is not None):
        raise RequestError(
            "Without --rank, --energy or --sv-ratio a build's LoRA is its exact sum in float32: "
            "leave --dtype and --conv-rank away, or say what to keep."
        )
    made_of = plan(folder, ledger, place.identities, ledger.rounds[-1].round, final=True)
    addends = [link.addend for link in made_of.links]
    known = {link.lora: link.blake3 for link in made_of.links}
    if not as_json:
        print("\n".join((*made_of.notes, _sum(made_of))))
    if whole:
        concat(addends, out, identities=known)
        bytes_written = out.stat().st_size
        said = f"{out}: {size(bytes_written)}, exact, to be used at strength 1"
        print(as_text(Exact(out, _sum(made_of), bytes_written)) if as_json else said)
        return
    cut = kept.cut()
    with translated(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside the output, so that there is room for it and it needs no other disk.
        with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as beside:
            exact = Path(beside, "exact.safetensors")
            concat(addends, exact, identities=known)
            with Counted(Terminal(), "extract", "modules") as bar:
                report = resize(
                    exact,
                    out,
                    cut,
                    conv_rank=kept.conv_rank,
                    dtype=dtype or "float16",
                    on_module=bar.told,
                )
    print(as_text(report) if as_json else render_resize(report))


def _sum(made_of: Plan) -> str:
    return " + ".join(f"{told(link.strength)} x round {link.round}" for link in made_of.links)
