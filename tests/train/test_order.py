"""Order is counted: a function of the seed, the round and the epoch, never of what ran before."""

from collections import Counter

from pipeline.artefacts.records import LatentRecord
from pipeline.train.counted import gaussian, uniform
from pipeline.train.order import Order, Pool


def records(count: int) -> list[LatentRecord]:
    sizes = ((64, 64), (48, 80))
    return [
        LatentRecord(
            md5=f"{i:032x}",
            shard="latents-00000.safetensors",
            row=i,
            width=sizes[i % 2][0],
            height=sizes[i % 2][1],
            original_width=200,
            original_height=200,
            crop_left=0,
            crop_top=0,
        )
        for i in range(count)
    ]


def test_every_epoch_shows_every_picture_once_and_never_mixes_buckets() -> None:
    rows = records(23)
    bucket = {r.md5: (r.width, r.height) for r in rows}
    order = Order([Pool(rows)], batch_size=4, seed=7, round_number=2)
    # 12 squares make 3 batches, 11 tall ones make 3.
    assert order.steps_per_epoch == 6
    for epoch in range(3):
        batches = [order.at(epoch * 6 + i) for i in range(6)]
        assert {b.epoch for b in batches} == {epoch}
        assert Counter(m for b in batches for m in b.md5s) == Counter(r.md5 for r in rows)
        assert all({bucket[m] for m in b.md5s} == {b.bucket} for b in batches)


def test_a_step_is_the_same_whether_reached_or_jumped_to() -> None:
    rows = records(23)
    walked = Order([Pool(rows)], 4, 7, 1)
    path = [walked.at(step) for step in range(20)]
    assert Order([Pool(list(reversed(rows)))], 4, 7, 1).at(17) == path[17]


def test_epochs_rounds_and_seeds_differ() -> None:
    rows = records(40)
    orders = [Order([Pool(rows)], 4, seed, number) for seed, number in ((1, 1), (1, 2), (2, 1))]
    first = {tuple(o.at(step).md5s for step in range(o.steps_per_epoch)) for o in orders}
    second = tuple(orders[0].at(orders[0].steps_per_epoch + i).md5s for i in range(10))
    assert len(first) == 3
    assert second not in first


def test_repeats_and_sources_have_batches_of_their_own() -> None:
    """Pictures of one's own come in the same order whatever stands beside them."""
    own, other = records(23), records(10)[3:]
    alone = Order([Pool(own)], 4, 7, 1)
    order = Order([Pool(own), Pool(other, repeats=3)], 4, 7, 1)
    # Of 7 others thrice, 9 are squares and 12 tall.
    assert order.steps_per_epoch == alone.steps_per_epoch + 3 + 3
    batches = [order.at(step) for step in range(order.steps_per_epoch)]
    shown = Counter((b.source, *one) for b in batches for one in b.pictures)
    assert shown == Counter(
        [(0, r.md5, 0) for r in own] + [(1, r.md5, copy) for r in other for copy in range(3)]
    )
    first = [b.pictures for b in batches if b.source == 0]
    assert first == [alone.at(step).pictures for step in range(alone.steps_per_epoch)]


def test_counted_noise_is_standard_normal_and_differs_by_key() -> None:
    a, b = gaussian((4, 64, 64), 1, "noise"), gaussian((4, 64, 64), 2, "noise")
    assert gaussian((4, 64, 64), 1, "noise").equal(a)
    assert abs(float(a.mean())) < 0.03
    assert abs(float(a.std()) - 1) < 0.03
    assert abs(float((a * b).mean())) < 0.03
    draws = [uniform("u", i) for i in range(2000)]
    assert min(draws) >= 0 and max(draws) < 1
    assert abs(sum(draws) / 2000 - 0.5) < 0.03
