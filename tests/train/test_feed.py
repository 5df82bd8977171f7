"""Which of a picture's texts and looks a step shows: a function of (seed, round, epoch, image)."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.artefacts.chain import INDEX_FILE
from pipeline.artefacts.receipts import write_receipt
from pipeline.artefacts.records import LatentRecord, TextRecord, read_records, write_records
from pipeline.errors import RequestError
from pipeline.models.places import EMPTY_CAPTION
from pipeline.train.feed import Feed
from pipeline.train.plan import RoundTraining
from pipeline.train.run import Run


def three_texts(folder: Path, training: RoundTraining) -> Path:
    """Each picture's texts hold 0, 1 and 2; the empty caption's 9."""
    folder.mkdir()
    file = folder / "text-00000.safetensors"
    rows = [(EMPTY_CAPTION, 0), *((md5, n) for md5 in training.pictures for n in range(3))]
    values = [9.0, *(float(n) for _ in training.pictures for n in range(3))]
    hidden = torch.tensor(values).half()[:, None, None].expand(-1, 77, 32)
    save_file({"hidden": hidden.contiguous()}, file)
    write_records(
        folder / INDEX_FILE,
        [
            TextRecord(md5=md5, shard=file.name, row=row, variant=variant)
            for row, (md5, variant) in enumerate(rows)
        ],
    )
    write_receipt(folder, "cache", "texts", inputs={}, outputs=[file, folder / INDEX_FILE])
    return folder


def test_one_of_a_pictures_texts_is_drawn_each_epoch(
    plan: Callable[..., tuple], tmp_path: Path
) -> None:
    recipe, training = plan("varied", train={"caption_dropout": 0.0})
    training = replace(training, texts=three_texts(tmp_path / "texts", training))
    feed = Feed(recipe, training, 1000)
    epochs = [
        [float(h[0, 0]) for step in range(feed.steps_per_epoch)
         for h in feed.at(epoch * feed.steps_per_epoch + step).told.hidden]
        for epoch in range(60)
    ]  # fmt: skip
    shown = Counter(text for epoch in epochs for text in epoch)
    # 600 draws of three: the standard deviation of each count is 11.5.
    assert set(shown) == {0.0, 1.0, 2.0}
    assert all(abs(count - 200) < 5 * 11.5 for count in shown.values())
    again = Feed(recipe, training, 1000)
    assert again.at(7).told.hidden.equal(feed.at(7).told.hidden)


def two_looks(folder: Path, training: RoundTraining) -> Path:
    """Each picture as it is, all 0, and mirrored, all 8."""
    folder.mkdir()
    rows = [
        row.model_copy(update={"variant": variant, "row": 2 * place + variant, "crop_left": crop})
        for place, row in enumerate(read_records(training.latents / INDEX_FILE, LatentRecord))
        for variant, crop in ((0, 0), (1, 5))
    ]
    rows = [row.model_copy(update={"shard": "x.safetensors"}) for row in rows]
    means = torch.tensor([0.0, 8.0] * (len(rows) // 2)).half()[:, None, None, None]
    means = means.expand(-1, 4, 8, 8).contiguous()
    tensors = {"mean": means, "logvar": torch.full_like(means, -20.0)}
    save_file(tensors, folder / "x.safetensors")
    write_records(folder / INDEX_FILE, rows)
    outputs = [folder / "x.safetensors", folder / INDEX_FILE]
    write_receipt(folder, "cache", "looks", inputs={}, outputs=outputs)
    return folder


def test_one_of_a_pictures_looks_is_drawn_each_epoch(
    plan: Callable[..., tuple], tmp_path: Path
) -> None:
    recipe, training = plan("mirrored")
    training = replace(training, latents=two_looks(tmp_path / "looks", training))
    feed = Feed(recipe, training, 1000)
    shown = Counter(
        bool(latent.mean() > 0.5)
        for step in range(40 * feed.steps_per_epoch)
        for latent in feed.at(step).latents
    )
    count = sum(shown.values())
    # A fair coin: the standard deviation is half the root of the throws.
    assert abs(shown[True] - count / 2) < 5 * count**0.5 / 2


@pytest.mark.parametrize(
    ("kind", "tensors", "said"),
    [
        ("texts", {"hidden": (1, 77, 48)}, "features a token 48, where this one's UNet takes 32"),
        ("texts", {"hidden": (1, 77, 32), "pooled": (1, 8)}, "pooled texts True, .* takes False"),
        ("latents", {"mean": (1, 16, 8, 8), "logvar": (1, 16, 8, 8)}, "latents 16, .* takes 4"),
    ],
    ids=("width", "sdxl", "vae"),
)
def test_shards_of_another_base_are_refused(
    plan: Callable[..., tuple],
    tmp_path: Path,
    kind: str,
    tensors: dict[str, tuple[int, ...]],
    said: str,
) -> None:
    recipe, training = plan("misfit")
    folder, file = tmp_path / "other", "0.safetensors"
    folder.mkdir()
    save_file({name: torch.zeros(shape).half() for name, shape in tensors.items()}, folder / file)
    record = LatentRecord if kind == "latents" else TextRecord
    rows = read_records(getattr(training, kind) / INDEX_FILE, record)
    write_records(
        folder / INDEX_FILE, [r.model_copy(update={"shard": file, "row": 0}) for r in rows]
    )
    outputs = [folder / file, folder / INDEX_FILE]
    write_receipt(folder, "cache", "other", inputs={}, outputs=outputs)
    with pytest.raises(RequestError, match=f"{folder} were made for another base: .*{said}"):
        Run(recipe, replace(training, **{kind: folder}))
