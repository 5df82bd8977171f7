import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from pipeline.artefacts import chain
from pipeline.artefacts.job import load_job
from pipeline.artefacts.receipts import done, read_receipt
from pipeline.artefacts.records import (
    Failure,
    LatentRecord,
    ResizedRecord,
    TextRecord,
    read_records,
)
from pipeline.cache import latents as latents_module
from pipeline.cache.reasons import reasons
from pipeline.cache.stage import run
from pipeline.errors import RequestError, UrushiError
from pipeline.models.shards import open_latents, open_texts
from pipeline.recipe.base import Base


def _bytes(folder: Path) -> dict[str, bytes]:
    """Every file but receipts, which state times."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if "receipt" not in f.name}


@pytest.fixture(params=["as_file", "as_folder"])
def base(tiny: Any, request: pytest.FixtureRequest) -> Base:
    chosen: Base = getattr(tiny, request.param)
    return chosen


def test_caches_what_the_models_give(
    tiny: Any, base: Base, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, base, 7)
    outcome = run(prepared.job, told)
    assert not outcome.already and "7 latents in" in outcome.summary and not told.lines

    store = open_latents(prepared.folders.latents)
    assert [r.md5 for r in store.records] == sorted(prepared.pixels) and len(store) == 7
    for record in store.records:
        assert (record.width, record.height) == prepared.buckets[record.md5]
        pixels = prepared.pixels[record.md5].astype(np.float32) / 127.5 - 1
        with torch.no_grad():
            posterior = tiny.pipeline.vae.encode(
                torch.from_numpy(pixels).permute(2, 0, 1)[None]
            ).latent_dist
        mean, logvar = store.latent(record.md5)
        # This VAE halves each side once.
        assert mean.shape == (4, record.height // 2, record.width // 2)
        assert mean.dtype == logvar.dtype == torch.float16
        # Batches and single pictures may take different kernels: one unit of float16 at most.
        torch.testing.assert_close(mean.float(), posterior.mean[0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(logvar.float(), posterior.logvar[0], atol=1e-3, rtol=1e-3)

    texts = open_texts(prepared.folders.text)
    assert [r.md5 for r in texts.records] == ["", *sorted(prepared.captions)]
    for md5, caption in {**prepared.captions, "": ""}.items():
        hidden, _ = tiny.pipeline.encode_prompt(caption, "cpu", 1, False)
        assert texts.hidden(md5).dtype == torch.float16
        torch.testing.assert_close(
            texts.hidden(md5).float(), hidden[0].detach(), atol=2e-3, rtol=1e-3
        )
    assert torch.equal(texts.empty, texts.hidden(""))
    assert "f" * 32 not in texts
    with pytest.raises(UrushiError, match="has nothing for picture ffff"):
        store.latent("f" * 32)


def test_rows_of_a_shard_are_of_one_bucket_and_the_index_is_complete(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file, 12)
    run(prepared.job, told)
    folder = prepared.folders.latents
    rows = read_records(folder / chain.INDEX_FILE, LatentRecord)
    shards = {row.shard for row in rows}
    assert len(shards) > 3  # More than one to a bucket.
    for shard in shards:
        mine = sorted((r for r in rows if r.shard == shard), key=lambda r: r.row)
        assert [r.row for r in mine] == list(range(len(mine)))
        assert [r.md5 for r in mine] == sorted(r.md5 for r in mine)
        assert len({(r.width, r.height) for r in mine}) == 1
        with safe_open(folder / shard, framework="pt") as file:
            assert set(file.keys()) == {"mean", "logvar"}
            assert file.get_tensor("mean").shape[0] == len(mine)
    receipt = done(folder, prepared.folders.latents_fingerprint)
    assert receipt and set(receipt.outputs) == {*shards, "index.jsonl", "failures.jsonl"}
    assert receipt.summary == {"latents": 12, "shards": len(shards), "failures": 0}


def test_stored_latents_are_mapped_not_read(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file, 3)
    run(prepared.job, told)
    store = open_latents(prepared.folders.latents)
    mean, _ = store.latent(store.records[0].md5)
    shard = str(prepared.folders.latents / store.records[0].shard)
    assert shard in Path("/proc/self/maps").read_text()
    again, _ = store.latent(store.records[0].md5)
    assert mean.data_ptr() == again.data_ptr()


def test_finished_stage_does_nothing_and_imports_no_torch(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file)
    run(prepared.job, told)
    before = {p: p.stat().st_mtime_ns for p in prepared.root.rglob("*")}
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from pipeline.artefacts.job import load_job
        from pipeline.cache.stage import run
        from pipeline.progress import Silent
        job = load_job(Path(sys.argv[1]), Path(sys.argv[2]))
        heavy = {"torch", "diffusers", "transformers", "accelerate"}
        print(run(job, Silent()).already, *(heavy & set(sys.modules)))
    """)
    arguments = [str(prepared.job.recipe_path), str(tmp_path / "workspace")]
    shown = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == ["True"]
    assert {p: p.stat().st_mtime_ns for p in prepared.root.rglob("*")} == before


def test_only_what_is_missing_loads_its_model(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file)
    run(prepared.job, told)
    for path in prepared.folders.text.iterdir():
        path.unlink()
    monkeypatch.setattr("pipeline.models.load.load_vae", None)
    assert not run(prepared.job, told).already
    (prepared.folders.latents / "receipt.json").unlink()
    monkeypatch.setattr("pipeline.models.load.load_text", None)
    # All shards are there: index and receipt follow without any model.
    bars = len(told.bars)
    assert not run(prepared.job, told).already and len(told.bars) == bars
    assert run(prepared.job, told).already


def test_goes_on_with_the_shards_that_are_missing(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_prepared(tmp_path / "whole", tiny.as_file, 12)
    run(whole.job, told)
    prepared = make_prepared(tmp_path / "cut", tiny.as_file, 12)
    real, calls = latents_module.LatentEncoder.__call__, []

    def stops(self: Any, shard: Any, advance: Any) -> Any:
        calls.append(shard.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, shard, advance)

    monkeypatch.setattr(latents_module.LatentEncoder, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        run(prepared.job, told)
    assert not (prepared.folders.latents / "index.jsonl").exists()
    assert read_receipt(prepared.folders.latents) is None
    told.bars.clear()
    run(prepared.job, told)
    assert calls[2] == calls[3] and len(calls) == len(set(calls)) + 1
    what, total, before, added = told.bars[0]
    assert (what, total, before + sum(added)) == ("latents of set", 12, 12) and before > 0
    assert _bytes(prepared.folders.latents) == _bytes(whole.folders.latents)


def test_a_shard_with_failures_is_done_too(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after it was made, the stage goes on without it, to the same bytes."""
    real, calls, stops = latents_module.LatentEncoder.__call__, [], [2]

    def counted(self: Any, shard: Any, advance: Any) -> Any:
        if len(calls) in stops:
            raise KeyboardInterrupt
        calls.append(shard.name)
        return real(self, shard, advance)

    monkeypatch.setattr(latents_module.LatentEncoder, "__call__", counted)
    cut, whole = (make_prepared(tmp_path / name, tiny.as_file, 12) for name in ("cut", "whole"))
    bad = min(md5 for md5, size in cut.buckets.items() if size == min(cut.buckets.values()))
    for prepared in (cut, whole):
        damaged = prepared.folders.resized / f"shards/00000/{bad}.webp"
        Image.new("RGB", (9, 9)).save(damaged)
    with pytest.raises(KeyboardInterrupt):
        run(cut.job, told)
    proof = read_receipt(cut.folders.latents, "latents-00000.receipt.json")
    assert proof is not None and [row["md5"] for row in proof.summary["failures"]] == [bad]
    stops.clear()
    run(cut.job, told)
    assert len(calls) == len(set(calls)) > 2
    run(whole.job, told)
    assert _bytes(cut.folders.latents) == _bytes(whole.folders.latents)
    (failure,) = read_records(cut.folders.latents / chain.FAILURES_FILE, Failure)
    assert failure.md5 == bad


def test_pictures_that_all_failed_are_tried_again(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    """As when their disk was not there."""
    prepared = make_prepared(tmp_path, tiny.as_file)
    shards = prepared.folders.resized / "shards"
    shards.rename(tmp_path / "away")
    with pytest.raises(UrushiError, match="cannot be read"):
        run(prepared.job, told)
    (tmp_path / "away").rename(shards)
    run(prepared.job, told)
    assert len(open_latents(prepared.folders.latents)) == len(prepared.pixels)


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from pipeline.artefacts.job import load_job
from pipeline.cache import latents, stage, texts
from pipeline.models import load
from pipeline.progress import Silent
job = load_job(Path(sys.argv[1]), Path(sys.argv[2]))
rng = random.Random(int(sys.argv[3]))
kills = 0
while True:
    child = os.fork()
    if not child:
        stage.run(job, Silent())
        os._exit(0)
    time.sleep(rng.uniform(0.02, 0.2))
    if kills < 6:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        kills += 1
    else:
        print(kills, status)
        break
"""


@pytest.mark.drill
def test_killed_at_random_gives_the_same_bytes(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    """Forks of one process that has the libraries loaded, so that kills fall into the work."""
    whole = make_prepared(tmp_path / "whole", tiny.as_file, 48)
    prepared = make_prepared(tmp_path / "cut", tiny.as_file, 48)
    seed = os.environ.get("DRILL_SEED", "1")
    shown = subprocess.run(
        [
            *(sys.executable, "-c", KILLER, str(prepared.job.recipe_path)),
            *(str(tmp_path / "cut" / "workspace"), seed),
        ],
        capture_output=True,
        text=True,
    )
    kills, status = map(int, shown.stdout.split())
    assert kills >= 3 and status == 0, shown.stderr
    assert run(prepared.job, told).already
    # As the killed ones: the number of threads moves a convolution's last bit.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run(whole.job, told)
    finally:
        torch.set_num_threads(threads)
    for name in ("latents", "text"):
        assert _bytes(getattr(prepared.folders, name)) == _bytes(getattr(whole.folders, name))
    leftovers = [p for p in prepared.root.rglob("*") if p.name.endswith(".part")]
    assert not leftovers


def test_shards_of_another_size_are_removed(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file, 12)
    run(prepared.job, told)
    folder = prepared.folders.latents
    (folder / "receipt.json").unlink()
    larger = prepared.job.recipe_path
    larger.write_text(larger.read_text().replace("0.002", "1"))
    from pipeline.artefacts.job import load_job

    run(load_job(larger, tmp_path / "workspace"), told)
    assert len(list(folder.glob("*.safetensors"))) == 3
    assert len(list(folder.glob("*.receipt.json"))) == 3
    assert len(open_latents(folder)) == 12


def test_pictures_and_captions_without_each_other_are_reported(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file, 9, uncaptioned=2, unresized=3)
    run(prepared.job, told)
    assert told.lines == [
        "set: 2 pictures have no caption and are left out of training",
        "set: 3 captions have no picture and are left out of training",
    ]


def test_cut_captions_are_counted(tiny: Any, tmp_path: Path, make_prepared: Any, told: Any) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file, 3)
    path = prepared.folders.captions / chain.CAPTIONS_FILE
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["caption"] = "blue " * 76
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    receipt = json.loads((path.parent / "receipt.json").read_text())
    receipt["outputs"][path.name]["bytes"] = path.stat().st_size
    (path.parent / "receipt.json").write_text(json.dumps(receipt))
    run(prepared.job, told)
    (line,) = told.lines
    assert line.startswith("set: 1 captions are longer than the 75 tokens")


def test_no_picture_fails_for_a_machine_that_cannot_open_it(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file, 3)
    known, opened = Image.open, list[Path]()

    def failing(path: Path) -> Image.Image:
        opened.append(path)
        if len(opened) == 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return known(path)

    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(UrushiError, match="ulimit -n"):
        run(prepared.job, told)
    run(prepared.job, told)
    assert read_records(prepared.folders.latents / chain.FAILURES_FILE, Failure) == []
    assert len(open_latents(prepared.folders.latents).records) == 3


def test_unreadable_pictures_are_failures(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file, 9)
    index = read_records(prepared.folders.resized / chain.INDEX_FILE, ResizedRecord)
    gone, cut, other, swapped = (prepared.folders.resized / r.file for r in index[:4])
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:40])
    other.write_text("not a picture")
    different = next(
        r for r in index[4:] if (r.width, r.height) != (index[3].width, index[3].height)
    )
    swapped.write_bytes((prepared.folders.resized / different.file).read_bytes())
    run(prepared.job, told)
    failures = read_records(prepared.folders.latents / chain.FAILURES_FILE, Failure)
    assert [f.md5 for f in failures] == [r.md5 for r in index[:4]]
    assert all("cannot be read" in f.reason for f in failures[:3])
    assert f"its bucket {index[3].width}x{index[3].height}" in failures[3].reason
    store = open_latents(prepared.folders.latents)
    assert [r.md5 for r in store.records] == [r.md5 for r in index[4:]]
    assert told.lines[0].startswith("set: 4 pictures failed")
    # Rows moved up: each is still its own picture's.
    clean = make_prepared(tmp_path / "clean", tiny.as_file, 9)
    run(clean.job, told)
    expected = open_latents(clean.folders.latents)
    for record in store.records:
        torch.testing.assert_close(
            store.latent(record.md5).mean, expected.latent(record.md5).mean, atol=1e-3, rtol=1e-3
        )


def _with_vae(tiny: Any, tmp_path: Path, name: str, value: float) -> Base:
    tensors = dict(tiny.tensors)
    tensors[name] = torch.full_like(tensors[name], value)
    path = tiny.build.write_single_file(tmp_path / "broken.safetensors", tensors)
    return Base(checkpoint=path, config=tiny.folder)


def test_a_vae_that_gives_nan_lands_nothing(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    base = _with_vae(tiny, tmp_path, "first_stage_model.quant_conv.bias", float("nan"))
    prepared = make_prepared(tmp_path, base)
    with pytest.raises(UrushiError, match="NaN or infinity"):
        run(prepared.job, told)
    folder = prepared.folders.latents
    failures = read_records(folder / chain.FAILURES_FILE, Failure)
    assert sorted(f.md5 for f in failures) == sorted(prepared.pixels)
    assert not list(folder.glob("*.safetensors"))
    assert done(folder, prepared.folders.latents_fingerprint) is None
    with pytest.raises(RequestError, match="are not finished"):
        open_latents(folder)


def test_one_picture_beyond_float16_fails_alone(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file)
    bad = sorted(prepared.pixels)[3]
    bad_pixels = torch.from_numpy(prepared.pixels[bad].astype(np.float32)) / 127.5 - 1

    real = latents_module.encode

    def overflows(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
        latents = real(vae, pixels).float()
        for row, picture in enumerate(pixels):
            if torch.equal(picture.permute(1, 2, 0), bad_pixels):
                latents[row, 0, 0, 0] = 1e5
        return latents.half()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents_module, "encode", overflows)
        run(prepared.job, told)
    store = open_latents(prepared.folders.latents)
    assert bad not in store and len(store) == 6
    (failure,) = read_records(prepared.folders.latents / chain.FAILURES_FILE, Failure)
    assert failure.md5 == bad and "NaN or infinity" in failure.reason


def test_a_text_encoder_that_gives_nan(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    name = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    prepared = make_prepared(tmp_path, _with_vae(tiny, tmp_path, name, float("nan")))
    for _ in range(2):  # And a second run does not take it for done.
        with pytest.raises(UrushiError, match="text encoder gives NaN"):
            run(prepared.job, told)


def test_earlier_stages_must_have_run(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file)
    recipe = prepared.job.recipe_path
    (prepared.folders.captions / "receipt.json").unlink()
    with pytest.raises(RequestError, match=rf"captions of set .* `urushi caption {recipe}`"):
        run(prepared.job, told)
    assert not prepared.folders.latents.exists(), "hours were spent before that was said"
    (prepared.folders.resized / "receipt.json").unlink()
    with pytest.raises(RequestError, match=rf"pictures of set .* `urushi resize {recipe}`"):
        run(prepared.job, told)
    (prepared.root / "images" / "receipt.json").unlink()
    with pytest.raises(RequestError, match=f"`urushi download {recipe}`"):
        run(prepared.job, told)


def test_only_the_changed_component_is_cached_again(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    one = make_prepared(tmp_path / "one", tiny.as_file)
    name = "first_stage_model.quant_conv.bias"
    two = make_prepared(tmp_path / "two", _with_vae(tiny, tmp_path, name, 0.5))
    assert one.folders.latents_fingerprint != two.folders.latents_fingerprint
    assert one.folders.resized_fingerprint == two.folders.resized_fingerprint
    assert one.folders.text_fingerprint == two.folders.text_fingerprint


def test_a_damaged_shard_is_named(tiny: Any, tmp_path: Path, make_prepared: Any, told: Any) -> None:
    prepared = make_prepared(tmp_path, tiny.as_file)
    run(prepared.job, told)
    row = read_records(prepared.folders.text / chain.INDEX_FILE, TextRecord)[0]
    path = prepared.folders.text / row.shard
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(UrushiError, match=f"{row.shard} cannot be read"):
        _ = open_texts(prepared.folders.text).empty


def test_texts_are_not_cached_where_the_encoders_learn_from_the_first_round(
    tiny: Any, tmp_path: Path, make_prepared: Any, told: Any
) -> None:
    prepared = make_prepared(tmp_path, tiny.as_folder)
    recipe = prepared.job.recipe_path
    plain = recipe.read_text()
    recipe.write_text(plain + "[train]\ntext_encoder_rate = 0.5\n")
    job = load_job(recipe, prepared.job.workspace.root)
    outcome = run(job, told)
    assert "no texts: they are encoded as the text encoders learn" in outcome.summary
    assert done(prepared.folders.latents, prepared.folders.latents_fingerprint)
    assert not prepared.folders.text.exists()
    assert run(job, told).already
    assert "text: not cached" in "".join(reasons(job, job.datasets[0][1]))
    # From the second round on only, the first one's are wanted.
    later = "[rounds]\ncount = 1\n[[round]]\ntrain = { text_encoder_rate = 0.5 }\n"
    recipe.write_text(plain + later)
    assert "texts in" in run(load_job(recipe, prepared.job.workspace.root), told).summary
