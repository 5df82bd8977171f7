"""Why latents or texts are to be made again: what they would be made of now beside what the last
ones were.

urushi cache RECIPE --why
"""

import json
from collections.abc import Iterator
from typing import Any

from pipeline.artefacts.job import Job
from pipeline.artefacts.receipts import done, read_receipt
from pipeline.cache.inputs import latent_inputs, text_inputs
from pipeline.cache.prune import generations
from pipeline.models.places import cache_folders
from pipeline.recipe import DatasetRecipe

LONGEST = 60
"""Characters of a value that are shown."""


def reasons(job: Job, dataset: DatasetRecipe) -> Iterator[str]:
    """Lines for a person, for the latents and the texts of `dataset`.

    Raises:
        RequestError: there are no pictures yet, or the base is wrong.
    """
    places, folder = cache_folders(job, dataset), job.dataset_folder(dataset)
    known = generations(folder)
    for kind, place, fingerprint, inputs in (
        ("latents", places.latents, places.latents_fingerprint, latent_inputs),
        ("text", places.text, places.text_fingerprint, text_inputs),
    ):
        if kind == "text" and not job.recipe.caches_text:
            yield "text: not cached, as the text encoders learn from round 1 on"
            continue
        if done(place, fingerprint) is not None:
            yield f"{kind}: made, nothing is stale"
            continue
        if read_receipt(place) is not None:
            yield f"{kind}: a shard of {place} is missing or has another size; it is made again"
            continue
        last = next((one for one in known if one.stage == kind), None)
        before = read_receipt(last.folder) if last is not None else None
        if last is None or before is None:
            yield f"{kind}: never finished"
        else:
            yield f"{kind}: stale; unlike {last.folder.name}, the last ones,"
            for change in changes(before.inputs, inputs(job, dataset)):
                yield f"  {change}"
        if shards := len(list(place.glob("*.receipt.json"))):
            yield f"  {shards} shards of the new ones are made"


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Every value that differs, by its dotted name. Of digests only that they do."""
    one, other = dict(_flat(before)), dict(_flat(now))
    found = []
    for name in dict.fromkeys((*one, *other)):
        if one.get(name) != other.get(name):
            if "." in name or name.startswith("stage"):
                found.append(f"{name}: {_shown(one.get(name))} -> {_shown(other.get(name))}")
            else:
                found.append(f"{name}: others than before")
    return found


def _flat(table: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
