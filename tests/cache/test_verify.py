"""Shards that were damaged, caches that are stale, and generations that are let go of."""

from pathlib import Path
from typing import Any

from pipeline.artefacts.job import Job, load_job
from pipeline.artefacts.receipts import read_receipt
from pipeline.cache.inputs import text_inputs
from pipeline.cache.reasons import changes, reasons
from pipeline.cache.stage import run
from pipeline.cache.verify import verify
from pipeline.progress import Silent
from pipeline.recipe import DatasetRecipe


def _times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_flipped_bit_is_found_and_its_shard_made_again_alone(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file, 12)
    run(prepared.job, told)
    dataset, folder = prepared.job.datasets[0][1], prepared.folders.latents
    assert verify(prepared.job, dataset, Silent()) == []
    assert run(prepared.job, told).already
    shard = sorted(folder.glob("*.safetensors"))[2]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5] + bytes([whole[-5] ^ 4]) + whole[-4:])
    assert run(prepared.job, told).already  # Its size is right: only hashing tells.
    before = _times(folder)
    assert verify(prepared.job, dataset, Silent()) == [shard]
    assert not run(prepared.job, told).already
    assert shard.read_bytes() == whole
    made = {name for name, when in _times(folder).items() if before.get(name) != when}
    assert {name for name in made if name.endswith(".safetensors")} == {shard.name}
    assert verify(prepared.job, dataset, Silent()) == []


def test_a_lost_shard_and_a_damaged_index_are_found(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file, 6)
    run(prepared.job, told)
    dataset, folders = prepared.job.datasets[0][1], prepared.folders
    shard = sorted(folders.text.glob("*.safetensors"))[0]
    index = folders.latents / "index.jsonl"
    shard.unlink()
    index.write_bytes(index.read_bytes().replace(b'"row":0', b'"row":1', 1))
    assert set(verify(prepared.job, dataset, Silent())) == {shard, index}
    told.bars.clear()
    run(prepared.job, told)
    # The index is written from receipts, without the VAE.
    assert [what for what, *_ in told.bars] == ["texts of set"]
    assert verify(prepared.job, dataset, Silent()) == []


def _changed(prepared: Any, old: str, new: str) -> Any:
    path = prepared.job.recipe_path
    path.write_text(path.read_text().replace(old, new))
    return load_job(path, prepared.job.workspace.root)


def test_why_names_what_changed(tiny: Any, tmp_path: Path, make_prepared: Any, told: Any) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file, 6)
    dataset = prepared.job.datasets[0][1]
    assert list(reasons(prepared.job, dataset)) == [
        "latents: never finished",
        "text: never finished",
    ]
    run(prepared.job, told)
    assert list(reasons(prepared.job, dataset)) == [
        "latents: made, nothing is stale",
        "text: made, nothing is stale",
    ]
    job = _changed(prepared, "[cache]", "[cache]\nmirror = true")
    stale, change, text = reasons(job, dataset)
    assert stale.startswith("latents: stale; unlike ")
    assert change == "  [cache].mirror: false -> true"
    assert text == "text: made, nothing is stale"
    job = _changed(prepared, "max_side = 24", 'max_side = 32\ncrop = "top"')
    found = list(reasons(job, dataset))
    assert "  [resize].max_side: 24 -> 32" in found
    assert '  [resize].crop: "center" -> "top"' in found
    job = _changed(prepared, "[dataset]", "clip_skip = 2\n[dataset]")
    assert "  [base].clip_skip: 1 -> 2" in list(reasons(job, dataset))


def test_why_names_a_tokenizer_whose_files_changed(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    """And not one that only lies elsewhere."""
    prepared = make_prepared(tmp_path, tiny.as_file, 6)
    recipe = prepared.job.datasets[0][0]
    words = tmp_path / "words"
    words.mkdir()
    (words / "vocab.json").write_text('{"a": 0}')
    (words / "merges.txt").write_text("#version: 0.2\n")
    recipe.write_text(recipe.read_text() + f'\n[caption]\ntokenizer = "{words}"\n')
    before = text_inputs(*_loaded(prepared))
    words.rename(tmp_path / "elsewhere")
    recipe.write_text(recipe.read_text().replace(str(words), str(tmp_path / "elsewhere")))
    assert changes(before, text_inputs(*_loaded(prepared))) == []
    (tmp_path / "elsewhere" / "vocab.json").write_text('{"b": 0}')
    assert changes(before, text_inputs(*_loaded(prepared))) == ["tokenizer: others than before"]


def _loaded(prepared: Any) -> tuple[Job, DatasetRecipe]:
    job = load_job(prepared.job.recipe_path, prepared.job.workspace.root)
    return job, job.datasets[0][1]


def test_changes_of_digests_say_only_that() -> None:
    before = {"VAE": "aa", "[cache]": {"mirror": False}, "pictures": "x"}
    now = {"VAE": "bb", "[cache]": {"mirror": False}, "pictures": "x"}
    assert changes(before, now) == ["VAE: others than before"]


def test_old_generations_go_when_asked_and_are_named(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file, 6)
    run(prepared.job, told)
    first = prepared.folders
    job = _changed(prepared, "[cache]", "[cache]\nrecolour = 1")
    run(job, told)
    assert first.latents.exists()  # All stay unless the recipe says otherwise.
    told.lines.clear()
    job = _changed(prepared, "recolour = 1", "recolour = 2\nkeep = 2")
    run(job, told)
    assert not first.latents.exists() and first.text.exists()
    assert len(told.lines) == 1 and str(first.latents) in told.lines[0]
    assert "as [cache].keep = 2 says" in told.lines[0]
    left = [f for f in first.latents.parent.iterdir() if read_receipt(f)]
    assert len(left) == 3  # Two generations of latents, one of texts.
