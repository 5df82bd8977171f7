from pipeline.artefacts.masks import Mask
from pipeline.artefacts.records import CaptionRecord, ResizedRecord
from pipeline.cache.plan import latent_row_bytes, latent_shards, looks, text_row_bytes, text_shards
from pipeline.recipe.cache import Cache
from pipeline.size import Size

SD15_VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 4}
SD15_TEXT = [{"hidden_size": 768}]
SDXL_TEXT = [{"hidden_size": 768}, {"hidden_size": 1280, "projection_dim": 1280}]


def _picture(md5: str, width: int, height: int) -> ResizedRecord:
    return ResizedRecord(
        md5=md5, file=md5, width=width, height=height, original_width=width,
        original_height=height, scaled_width=width, scaled_height=height, crop_left=0, crop_top=0,
    )  # fmt: skip


def test_row_sizes_of_stable_diffusion() -> None:
    # 512 / 8 = 64: 64 x 64 x 4 channels x 2 (mean, log-variance) x 2 bytes.
    assert latent_row_bytes(Size(512, 512), SD15_VAE) == 65_536
    assert latent_row_bytes(Size(768, 512), SD15_VAE) == 98_304
    assert text_row_bytes(SD15_TEXT, 1) == 77 * 768 * 2
    assert text_row_bytes(SDXL_TEXT, 3) == 2 * (231 * 2048 + 1280)


def test_one_bucket_a_shard_in_order_of_md5() -> None:
    large, small = (64, 64), (8, 8)
    sizes = {"c": large, "a": large, "d": small, "b": large, "e": small}
    pictures = [_picture(md5, *size) for md5, size in sizes.items()]
    # 64 x 64 pixels take 1,024 bytes: two rows fit in 0.0021 MB.
    shards = latent_shards(pictures, SD15_VAE, Cache(shard_megabytes=0.0021))
    assert [(s.name, [p.md5 for p in s.items]) for s in shards] == [
        ("latents-00000.safetensors", ["d", "e"]),
        ("latents-00001.safetensors", ["a", "b"]),
        ("latents-00002.safetensors", ["c"]),
    ]
    assert shards[0].receipt == "latents-00000.receipt.json"
    assert latent_shards(reversed(pictures), SD15_VAE, Cache(shard_megabytes=0.0021)) == shards
    # A row larger than a shard still gets one.
    assert len(latent_shards(pictures, SD15_VAE, Cache(shard_megabytes=1e-9))) == 5


def test_the_empty_caption_comes_first() -> None:
    captions = [CaptionRecord(md5=m, caption=m, score=None) for m in "ba"]
    (shard,) = text_shards(captions, 118_272, 256)
    assert [item.md5 for item in shard.items] == ["", "a", "b"]
    assert shard.items[0].text == ""


def test_a_shards_fingerprint_is_of_its_rows() -> None:
    captions = [CaptionRecord(md5=m, caption=m, score=None) for m in "ab"]
    one, two = (text_shards(rows, 118_272, 256)[0] for rows in (captions, captions[:1]))
    assert one.fingerprint("x") != two.fingerprint("x")
    assert one.fingerprint("x") != one.fingerprint("y")


def test_a_shards_fingerprint_is_of_its_masks_and_without_any_that_of_before() -> None:
    """The digest is that of the last version without masks."""
    picture, other = _picture("a", 8, 8), _picture("b", 8, 8)
    cache = Cache(mirror=True)
    (plain,) = latent_shards([picture], SD15_VAE, cache, {"b": Mask("b.png", "2")})
    assert plain.name == "latents-00000.safetensors"
    assert plain.fingerprint("c") == "133e4f6fcc8efb3b09e4"
    prints = {
        latent_shards([picture, other], SD15_VAE, cache, masks)[0].fingerprint("c")
        for masks in (
            None,
            {"a": Mask("a.png", "1")},
            {"a": Mask("a.png", "2")},
            {"b": Mask("a.png", "1")},
            # Where it lies is the same.
            {"b": Mask("b.png", "1")},
        )
    }
    assert len(prints) == 4


def test_looks_of_a_picture_by_hand() -> None:
    """Scaled to 100x64 and cut to 64x64 from 10 on, 26 pixels are lost at the right."""
    picture = _picture("a" * 32, 64, 64).model_copy(
        update={"scaled_width": 100, "crop_left": 10, "original_width": 200}
    )
    (plain,) = looks(picture, Cache())
    assert (plain.variant, plain.left, plain.original) == (0, 10, Size(200, 64))
    plain, mirrored, first, second = looks(picture, Cache(mirror=True, recolour=2))
    assert [one.variant for one in (plain, mirrored, first, second)] == [0, 1, 2, 3]
    assert (mirrored.mirrored, mirrored.left, mirrored.recoloured) == (True, 26, 0)
    assert (first.mirrored, first.recoloured, first.left) == (True, 1, 26)
    assert (second.mirrored, second.recoloured, second.left) == (False, 2, 10)


def test_variants_stand_beside_their_picture() -> None:
    pictures = [_picture(md5, 64, 64) for md5 in "ba"]
    (shard,) = latent_shards(pictures, SD15_VAE, Cache(mirror=True))
    assert [(i.md5, i.variant) for i in shard.items] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    record = CaptionRecord(md5="a", caption="x, y", score=None, texts=("y, x",))
    (shard,) = text_shards([record], 1, 256)
    assert shard.items[1:] == (("a", 0, "x, y"), ("a", 1, "y, x"))
