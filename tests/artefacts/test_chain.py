"""Which change makes what again, and what it leaves alone: DESIGN's chain of fingerprints."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.artefacts import chain
from pipeline.artefacts.identity import Identities
from pipeline.artefacts.job import Job
from pipeline.artefacts.receipts import Output, Receipt, write_receipt
from pipeline.artefacts.workspace import Workspace
from pipeline.errors import RequestError
from pipeline.recipe import DatasetRecipe
from pipeline.recipe.base import Base
from pipeline.recipe.cache import Cache
from pipeline.recipe.resize import Resize


def dataset(**changes: Any) -> DatasetRecipe:
    own = {key: changes.pop(key) for key in ("caption", "tagger") if key in changes}
    download = {"site": "danbooru", "tags": "cat", "limit": 50} | changes
    return DatasetRecipe.model_validate({"name": "set", "download": download, **own})


def images(content: str = "c", pictures: str = "p") -> Receipt:
    outputs = {chain.IMAGES_FILE: Output(1, content)}
    return Receipt("download", "f", {}, outputs, summary={"pictures": pictures})


@pytest.mark.parametrize(
    "change",
    [
        {"tags": "dog"},
        {"limit": 51},
        {"ratings": ["general", "sensitive"]},
    ],
)
def test_another_question_is_another_download(change: dict[str, Any]) -> None:
    assert chain.download_fingerprint(dataset(**change)) != chain.download_fingerprint(dataset())


@pytest.mark.parametrize(
    "change",
    [
        {"host": "http://127.0.0.1:1"},
        {"requests_per_second": 9.0},
        {"connections": 7},
        {"contact": "me"},
        {"caption": {"drop_tags": ["x"]}},
    ],
)
def test_how_it_is_fetched_or_captioned_is_no_other_download(change: dict[str, Any]) -> None:
    assert chain.download_fingerprint(dataset(**change)) == chain.download_fingerprint(dataset())


def test_captions_follow_rules_facts_and_the_taggers_files(tmp_path: Path) -> None:
    known = Identities(tmp_path / "identities.json")

    def of(asked: DatasetRecipe, **there: str) -> str:
        return chain.caption_fingerprint(asked, images(**there), known)

    one = of(dataset())
    assert one == of(dataset(limit=9))
    assert one != of(dataset(caption={"drop_tags": ["x"]}))
    assert one != of(dataset(caption={"quality": []}))
    assert one != of(dataset(), content="scores changed")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"one")
    sections: list[dict[str, Any]] = [{"model": str(folder)}, {"model": "another/one"}]
    sections.append({"model": "another/one", "general": 0.4})
    tagged = {of(dataset(tagger=section)) for section in sections} | {one}
    assert len(tagged) == 4
    # How many are looked at together changes nothing; another model in the same place does.
    sections[0]["batch_size"] = 9
    assert of(dataset(tagger=sections[0])) in tagged
    (folder / "notes.txt").write_text("nothing of the model's")
    assert of(dataset(tagger=sections[0])) in tagged
    (folder / "model.onnx").write_bytes(b"another")
    assert of(dataset(tagger=sections[0])) not in tagged


def test_pictures_follow_the_ladder_and_which_there_are() -> None:
    one = chain.resize_fingerprint(Resize(), images())
    assert one == chain.resize_fingerprint(Resize(), images(content="scores changed"))
    assert one != chain.resize_fingerprint(Resize(), images(pictures="one more"))
    assert one != chain.resize_fingerprint(Resize(step=32), images())


def test_latents_follow_pictures_vae_and_looks_and_texts_captions_encoders_and_reading() -> None:
    def latents(resize: Resize | None = None, vae: str = "v", **cache: object) -> str:
        settings = Cache.model_validate(cache)
        return chain.latents_fingerprint(resize or Resize(), images(), vae, settings)

    def text(captions: str = "c", encoders: str = "t", **base: object) -> str:
        table = {"checkpoint": "base.safetensors", **base}
        return chain.text_fingerprint(captions, encoders, Base.model_validate(table))

    assert len({latents(), latents(Resize(step=32)), latents(vae="w"), latents(mirror=True)}) == 4
    assert len({latents(), latents(recolour=1), latents(arithmetic="bfloat16")}) == 3
    # How they are made is not what they are, nor how resized pictures lie on disk.
    assert latents(Resize(keep=False)) == latents() == latents(Resize(format="png"))
    assert latents(Resize(format="jpeg")) != latents()
    how = {"batch_size": 9, "shard_megabytes": 1, "compile": True, "keep": 2}
    assert latents(**how) == latents()
    assert len({text(), text("d"), text(encoders="u"), text(clip_skip=2), text(tokens=150)}) == 5
    assert text(checkpoint="moved.safetensors") == text()


def test_latents_without_masks_are_those_from_before_there_were_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The digest is that of the last version without masks."""
    monkeypatch.setattr(chain, "VERSIONS", {"resize": 2, "latents": 2})
    one = images(pictures="p")
    assert chain.latents_fingerprint(Resize(), one, "v", Cache()) == "915729f708fb191f0281"
    alpha, files = (Cache.model_validate({"masks": kind}) for kind in ("alpha", "files"))
    assert (
        len({chain.latents_fingerprint(Resize(), one, "v", c) for c in (Cache(), alpha, files)})
        == 3
    )


def test_a_raised_version_makes_a_stage_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one = chain.resize_fingerprint(Resize(), images())
    monkeypatch.setitem(chain.VERSIONS, "resize", 99)
    assert chain.resize_fingerprint(Resize(), images()) != one


def test_pictures_that_are_not_here_yet_are_asked_for(tmp_path: Path) -> None:
    recipe = tmp_path / "set.toml"
    job = Job(recipe, Workspace(tmp_path), None, ((recipe, dataset()),))
    folder = job.dataset_folder(dataset())
    with pytest.raises(RequestError, match=f"{folder.images} .* `urushi download {recipe}` first"):
        chain.images_receipt(job, dataset())
    folder.images.mkdir(parents=True)
    write_receipt(
        folder.images, "download", chain.download_fingerprint(dataset()), inputs={}, outputs=[]
    )
    assert chain.images_receipt(job, dataset()).stage == "download"
    with pytest.raises(RequestError, match="urushi download"):
        chain.images_receipt(job, dataset(tags="dog"))


def test_a_local_folder_is_a_question_too() -> None:
    def of(path: str) -> str:
        recipe = DatasetRecipe.model_validate({"name": "set", "folder": {"path": path}})
        return chain.download_fingerprint(recipe)

    assert of("/a") == of("/a") != of("/b")
