"""`urushi export BUILD --out FILE`: the final model in another dtype or form, with another VAE."""

from pathlib import Path

from pipeline.artefacts.files import files_of
from pipeline.artefacts.ledger import read_ledger
from pipeline.errors import RequestError
from urushi.builds import build_job
from urushi.progress import Counted, Terminal
from urushi.table import size


def export_build(
    build: str, out: Path, dtype: str, vae: Path | None, folder: bool, workspace: Path
) -> None:
    """Writes the model and says what it is.

    Raises:
        RequestError: no such build, no round was merged, or the output is there or in the build.
        UrushiError: an input is missing or was changed, or the output does not load.
        MergeError: the output cannot be written.
    """
    from pipeline.rounds.chain import sha256
    from pipeline.rounds.export import export
    from pipeline.rounds.rebuild import plan

    job = build_job(build, workspace)
    ledger, base = read_ledger(job.folder.ledger), job.recipe.base
    if not ledger.rounds:
        raise RequestError(f"No round of {ledger.build} is merged yet: there is nothing to write.")
    if job.folder.root in out.resolve().parents:
        raise RequestError(
            f"--out {out} is inside the build, whose files are made by `urushi run` alone. "
            "Choose another place."
        )
    last, known = ledger.rounds[-1].round, job.workspace.identities
    made_of = plan(job.folder, ledger, known, last, moved=base.checkpoint, final=True)
    with Counted(Terminal(), "export", "tensors") as bar:
        export(made_of, base, out, dtype=dtype, vae=vae, folder=folder, on_tensor=bar.told)
    bytes_written = sum(path.stat().st_size for path in files_of(out))
    print(f"{out}: {size(bytes_written)}, {dtype}, loads with diffusers")
    print(f"sha256 {sha256(out)}")
