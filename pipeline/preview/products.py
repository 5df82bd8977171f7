"""The report's list of files: what each is for, its sha256, how to rebuild the model."""

import hashlib
import shlex
from html import escape
from pathlib import Path

from pipeline.artefacts.files import files_of
from pipeline.artefacts.ledger import Ledger
from pipeline.artefacts.strength import asked
from pipeline.artefacts.workspace import BuildFolder
from pipeline.preview import wording

SAME = (
    "A whole model, in the same layout as the one that you started from: whatever opens that one "
    "opens this one. "
)
AS_FOLDER = SAME + "It is a diffusers folder: name it where a program asks for a model's path."
AS_FILE = SAME + (
    "Copy it to where your program keeps checkpoints (<code>models/Stable-diffusion</code> in the "
    "web UI and Forge, <code>models/checkpoints</code> in ComfyUI) and choose it there."
)


def products(folder: BuildFolder, ledger: Ledger) -> str:
    """What to take away from the build's folder, and how to use it."""
    parts = ["<p>They lie beside this report.</p>"]
    if ledger.final is None:
        parts.append('<p class="hint">The final files are written when the last round is done.</p>')
    else:
        parts.append(
            _card(
                ledger.final,
                folder.root / ledger.final,
                ledger.final_sha256,
                "The finished model",
                AS_FOLDER if (folder.root / ledger.final).is_dir() else AS_FILE,
            )
        )
    if ledger.final_lora is not None:
        path = folder.root / ledger.final_lora
        parts.append(
            _card(
                ledger.final_lora,
                path,
                _sha256(path),
                "The same change as one LoRA",
                f"All merged rounds in one LoRA, for use on <code>{_origin(ledger)}</code> at "
                "weight 1, or on a relative of it. Copy it to <code>models/Lora</code> "
                "(<code>models/loras</code> in ComfyUI).",
            )
        )
    if ledger.rounds:
        parts.append(_rounds(folder, ledger))
    return "\n".join(parts)


def _card(name: str, path: Path, sha256: str | None, title: str, text: str) -> str:
    bytes_ = sum(file.stat().st_size for file in files_of(path))
    size = f", {wording.megabytes(bytes_)}" if bytes_ else ""
    digest = f'<div class="digest">sha256 <code>{escape(sha256)}</code></div>' if sha256 else ""
    return (
        f'<div class="card"><h3>{title}</h3><div><code>{escape(name)}</code>{size}</div>'
        f"<p>{text}</p>{digest}</div>"
    )


def _rounds(folder: BuildFolder, ledger: Ledger) -> str:
    body = "".join(
        f'<tr><th scope="row"><span class="word">Round </span>{row.round}</th>'
        f'<td data-name="File"><code>{escape(row.lora)}</code></td>'
        f'<td class="number" data-name="Rank">{row.rank}</td>'
        f'<td class="number" data-name="Alpha">{row.alpha:g}</td>'
        f'<td class="digest" data-name="sha256"><code>{escape(row.sha256)}</code></td></tr>\n'
        for row in ledger.rounds
    )
    text = (
        "<details><summary>Every round's LoRA, and how to build the model again</summary>\n"
        '<div class="card"><table class="stack"><thead><tr><th>Round</th><th>File</th>'
        '<th class="number">Rank</th><th class="number">Alpha</th><th>sha256</th></tr></thead>'
        f"<tbody>\n{body}</tbody></table></div>\n"
    )
    merged = [row for row in ledger.rounds if row.strength > 0]
    if merged:
        command = " \\\n  ".join(
            [
                shlex.join(["urushi", "merge", ledger.origin]),
                *(shlex.quote(row.lora) for row in merged),
                " ".join(f"--strength {asked(row.final_at)}" for row in merged),
                "--out mine.safetensors",
            ]
        )
        text += (
            "<p>The model is the origin plus each round's LoRA times its strength. Run in the "
            "folder of this report, this builds the same weights again. Leave rounds out or change "
            f"their strengths to make a variant.</p>\n<pre>{escape(command)}</pre>\n"
        )
    return text + "</details>"


def _origin(ledger: Ledger) -> str:
    return escape(Path(ledger.origin).name)


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
