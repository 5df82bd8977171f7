from pipeline.artefacts.records import CaptionRecord, ResizedRecord
from pipeline.cache.plan import latent_row_bytes, latent_shards, text_row_bytes, text_shards
from pipeline.recipe import Size

SD15_VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4}
SD15_TEXT = {"max_position_embeddings": 77, "hidden_size": 768}


def _picture(md5: str, width: int, height: int) -> ResizedRecord:
    return ResizedRecord(
        md5=md5, file=md5, width=width, height=height, original_width=width,
        original_height=height, scaled_width=width, scaled_height=height, crop_left=0, crop_top=0,
    )  # fmt: skip


def test_row_sizes_of_stable_diffusion() -> None:
    # 512 / 8 = 64: 64 x 64 x 4 channels x 2 (mean, log-variance) x 2 bytes.
    assert latent_row_bytes(Size(512, 512), SD15_VAE) == 65_536
    assert latent_row_bytes(Size(768, 512), SD15_VAE) == 98_304
    assert text_row_bytes(SD15_TEXT) == 77 * 768 * 2


def test_one_bucket_a_shard_in_order_of_md5() -> None:
    large, small = (64, 64), (8, 8)
    sizes = {"c": large, "a": large, "d": small, "b": large, "e": small}
    pictures = [_picture(md5, *size) for md5, size in sizes.items()]
    # 64 x 64 pixels take 1,024 bytes: two rows fit in 0.0021 MB.
    shards = latent_shards(pictures, SD15_VAE, 0.0021)
    assert [(s.name, [p.md5 for p in s.items]) for s in shards] == [
        ("latents-00000.safetensors", ["d", "e"]),
        ("latents-00001.safetensors", ["a", "b"]),
        ("latents-00002.safetensors", ["c"]),
    ]
    assert shards[0].receipt == "latents-00000.receipt.json"
    assert latent_shards(reversed(pictures), SD15_VAE, 0.0021) == shards
    # A row larger than a shard still gets one.
    assert len(latent_shards(pictures, SD15_VAE, 1e-9)) == 5


def test_the_empty_caption_comes_first() -> None:
    captions = [CaptionRecord(md5=m, caption=m, score=None) for m in "ba"]
    (shard,) = text_shards(captions, SD15_TEXT, 256)
    assert [item.md5 for item in shard.items] == ["", "a", "b"]
    assert shard.items[0].caption == ""


def test_a_shards_fingerprint_is_of_its_rows() -> None:
    captions = [CaptionRecord(md5=m, caption=m, score=None) for m in "ab"]
    one, two = (text_shards(rows, SD15_TEXT, 256)[0] for rows in (captions, captions[:1]))
    assert one.fingerprint("x") != two.fingerprint("x")
    assert one.fingerprint("x") != one.fingerprint("y")
