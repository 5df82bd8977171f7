"""The ledger and the pictures' facts into README.md, the model card beside the final checkpoint.

Says what the model is made of, what it was shown, and how to use it; names no folder of this
machine. The same build gives the same bytes.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.artefacts.files import write_text
from pipeline.artefacts.ledger import Ledger, RoundRow
from pipeline.artefacts.strength import told
from pipeline.artefacts.workspace import BuildFolder
from pipeline.preview import wording
from pipeline.preview.data import Counts, DatasetFacts
from pipeline.preview.standing import stands
from pipeline.preview.verdict import file_name
from pipeline.recipe.build import BuildRecipe

TRIGGER = 0.8
"""Share of the captions from which on a tag is taken for a trigger word."""
FAMILY_TAGS = {"sd15": "stable-diffusion", "sdxl": "stable-diffusion-xl"}
YAML_WORDS = ("yes", "no", "on", "off", "true", "false", "null", "y", "n")
"""What YAML reads as something other than text."""
PREDICTIONS = {"epsilon": "epsilon (noise)", "v_prediction": "v (velocity)"}


def write_card(
    folder: BuildFolder,
    ledger: Ledger,
    recipe: BuildRecipe,
    family: str,
    facts: Sequence[DatasetFacts],
) -> Path:
    """Writes the card, unless it is there with this content."""
    text = card(ledger, recipe, family, facts)
    if not folder.card.is_file() or folder.card.read_text(encoding="utf-8") != text:
        write_text(folder.card, text)
    return folder.card


def card(ledger: Ledger, recipe: BuildRecipe, family: str, facts: Sequence[DatasetFacts]) -> str:
    """The whole card: Markdown under a head of YAML."""
    parts = [
        _head(recipe, family),
        f"# {ledger.build}",
        recipe.card.note.strip(),
        _summary(ledger),
        "## How to use it",
        _settings(ledger, recipe, family, facts),
        "Prompts that it was looked at with, parentheses escaped as web interfaces want them:",
        _fenced("\n".join(escaped(prompt) for prompt in recipe.preview.prompts)),
        "## What it was made of",
        _lineage(ledger),
        "## What it was shown",
        *(_data(one) for one in facts),
        "## What is known of it",
        _limits(ledger),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(recipe: BuildRecipe, family: str) -> str:
    lines = ["---", f"license: {_yaml(recipe.card.licence)}", "library_name: diffusers"]
    lines.append("pipeline_tag: text-to-image")
    if recipe.card.base_model:
        lines.append(f"base_model: {_yaml(recipe.card.base_model)}")
    tags = ["text-to-image", FAMILY_TAGS[family], "relora", "urushi"]
    lines += ["tags:", *(f"- {tag}" for tag in tags), "---"]
    return "\n".join(lines)


def _summary(ledger: Ledger) -> str:
    points = stands(ledger)
    merged = [row for row in ledger.rounds if row.strength > 0]
    text = (
        f"Built with urushi from `{file_name(ledger.origin)}` in "
        f"{wording.count(len(merged), 'round')}: each trained a LoRA, chose its strength on "
        "pictures kept out of training, and merged it."
    )
    if points and points[0].loss > 0:
        before, after = points[0].loss, points[-1].loss
        text += (
            f" The loss on those pictures went from {wording.loss(before)} to "
            f"{wording.loss(after)}."
        )
    return text


def _settings(
    ledger: Ledger, recipe: BuildRecipe, family: str, facts: Sequence[DatasetFacts]
) -> str:
    sizes = dict.fromkeys(size for one in facts for size, _ in one.buckets)
    skip, sd15 = recipe.base.clip_skip, family == "sd15"
    rows = [
        ("Resolution", f"{recipe.resize.resolution} pixels a side, as an area"),
        ("Prediction type", PREDICTIONS[ledger.prediction_type]),
        # SDXL always takes the layer before the last, whatever an interface is set to.
        ("Clip skip", f"{skip}{' (none)' if skip == 1 else ''}" if sd15 else "2, as every SDXL"),
        ("Guidance, steps", f"{recipe.preview.guidance:g}, {recipe.preview.steps} (DDIM)"),
    ]
    if sizes:
        shown = ", ".join(size.replace("x", " × ") for size in list(sizes)[:8])
        rows.insert(1, ("Sizes trained at", shown + (" and more" if len(sizes) > 8 else "")))
    words = list(recipe.card.trigger_words) or _triggers(facts)
    if words:
        rows.append(("Trigger words", _code(words)))
    quality = dict.fromkeys(word for one in facts for word, _ in one.quality)
    if quality:
        rows.append(("Quality words", _code(list(quality))))
    if recipe.preview.negative:
        rows.append(("Negative prompt", f"`{escaped(recipe.preview.negative)}`"))
    return _table(("", ""), rows)


def _triggers(facts: Sequence[DatasetFacts]) -> list[str]:
    """Tags in nearly every caption of the first dataset, which is the main one."""
    if not facts:
        return []
    quality = {word for word, _ in facts[0].quality}
    return [
        tag
        for tag, count in facts[0].tags
        if count >= TRIGGER * facts[0].pictures and tag not in quality
    ]


def _lineage(ledger: Ledger) -> str:
    rows = [
        (
            str(row.round),
            row.dataset,
            f"{row.rank}",
            f"{row.steps:,}",
            wording.rate(row.learning_rate),
            _strength(row),
            f"`{row.sha256[:16]}…`",
        )
        for row in ledger.rounds
    ]
    header = ("Round", "Dataset", "Rank", "Steps", "Learning rate", "Strength", "LoRA (sha256)")
    text = (
        f"Origin `{file_name(ledger.origin)}`, BLAKE3 `{ledger.origin_blake3}`. The model is the "
        "origin plus every round's LoRA times its strength, summed in float32 and cast once. "
        "`build.json` beside this file has everything."
    )
    sums = f"sha256 of `{ledger.final}`: `{ledger.final_sha256}`" if ledger.final_sha256 else ""
    return "\n\n".join(part for part in (text, _table(header, rows), sums) if part)


def _strength(row: RoundRow) -> str:
    return told(row.final_at) if row.strength > 0 else "left out"


def _data(facts: DatasetFacts) -> str:
    lines = [
        f"**{facts.name}**: {facts.pictures:,} pictures.",
        f"- Asked for: `{facts.asked}`",
        f"- Sites: {_listed(facts.sites)}",
        f"- Ratings: {_listed(facts.ratings)}",
        f"- Artists: {len(facts.artists):,} by their tags; no caption names one. "
        "`urushi credits` lists them with the sources.",
    ]
    if facts.excluded:
        lines.append(f"- Excluded by the recipe: {', '.join(facts.excluded)}")
    if facts.left_out:
        count = sum(number for _, number in facts.left_out)
        lines.append(f"- Posts found and not taken: {count:,}")
    return "\n".join([lines[0], "", *lines[1:]])


def _limits(ledger: Ledger) -> str:
    return (
        f"Judged on {wording.count(ledger.heldout_pictures, 'picture')} kept out of training, by "
        "how well noise is predicted, which is not how pictures please. Look at the samples in "
        "`report.html`."
    )


def escaped(prompt: str) -> str:
    r"""Parentheses and brackets as web interfaces read them literally: \( \) \[ \]."""
    return re.sub(r"(?<!\\)([()\[\]])", r"\\\1", prompt)


def _code(words: Sequence[str]) -> str:
    return ", ".join(f"`{escaped(word)}`" for word in words)


def _listed(counts: Counts) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _fenced(text: str) -> str:
    """A block of code that what is in it cannot end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _yaml(text: str) -> str:
    """As YAML reads it back: plain where nothing in it means anything, else in double quotes."""
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9._/-]*", text) and text.lower() not in YAML_WORDS:
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'
