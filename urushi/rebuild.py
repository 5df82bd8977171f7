"""`urushi rebuild BUILD --round K`: a round's checkpoint again, as it was or changed."""

import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.artefacts.ledger import read_ledger
from pipeline.artefacts.strength import told
from pipeline.artefacts.workspace import Workspace
from pipeline.errors import RequestError
from pipeline.recipe import BuildRecipe, load_any
from urushi.builds import build_name
from urushi.progress import Counted, Terminal
from urushi.table import size


def rebuild_round(
    build: str,
    number: int,
    strengths: str | None,
    dropped: Sequence[int],
    out: Path | None,
    workspace: Path,
    *,
    final: bool = False,
) -> None:
    """Writes the checkpoint of round `number` and says what it is made of.

    Raises:
        RequestError: no such build or round, wrong strengths, or an output inside the build.
        UrushiError: a file is missing or changed, or the bytes differ from the round's own.
        MergeError: the output cannot be written.
    """
    from pipeline.rounds.rebuild import plan, rebuild

    place = Workspace(workspace.resolve())
    folder = place.build(build_name(build, workspace))
    ledger = read_ledger(folder.ledger)
    numbers = None if strengths is None else parse_strengths(strengths)
    made_of = plan(
        folder,
        ledger,
        place.identities,
        number,
        numbers,
        dropped,
        _recipe_origin(build),
        final=final,
    )
    changed = "" if made_of.expected else "-changed"
    suffix = "" if made_of.origin.checkpoint.is_dir() else ".safetensors"
    target = out or Path(f"{ledger.build}-round-{number}{changed}{suffix}")
    if folder.root in target.resolve().parents:
        raise RequestError(
            f"--out {target} is inside the build, whose files are made by `urushi run` alone. "
            "Choose another place."
        )
    for note in made_of.notes:
        print(note)
    with Counted(Terminal(), f"rebuild {number}", "tensors") as bar:
        made = rebuild(made_of, target, bar.told)
    sum_of = " + ".join(f"{told(link.strength)} x round {link.round}" for link in made_of.links)
    print(f"{target}: {made.report.tensors} tensors, {size(made.report.size)}")
    print(f"origin + {sum_of}")
    whose = "the final checkpoint has" if final else f"round {number} had"
    same = f", the same bytes as {whose}" if made_of.expected else ""
    print(f"sha256 {made.sha256}{same}")


def parse_strengths(text: str) -> list[float]:
    """ "0.7,0.9" as numbers."""
    numbers = []
    for part in text.split(","):
        try:
            numbers.append(float(part))
        except ValueError:
            raise RequestError(f"--strengths {part.strip()!r} is not a number.") from None
        if not math.isfinite(numbers[-1]):
            raise RequestError(f"--strengths {part.strip()!r} is not a finite number.")
    return numbers


def _recipe_origin(build: str) -> Path | None:
    """Where a recipe says that the origin is; a build named by name has its ledger alone."""
    if not build.endswith(".toml"):
        return None
    recipe = load_any(Path(build))
    return recipe.base.checkpoint if isinstance(recipe, BuildRecipe) else None
