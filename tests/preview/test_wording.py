import pytest

from pipeline.preview import wording


@pytest.mark.parametrize(
    ("value", "words"), [(1e-4, "1e-4"), (5e-5, "5e-5"), (0.00147, "1.47e-3"), (0.003, "3e-3")]
)
def test_rate(value: float, words: str) -> None:
    assert wording.rate(value) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.6, "1 min 0 s"),
        (192, "3 min 12 s"),
        (7500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert wording.duration(seconds) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0.704, "70 %"), (0.042, "4.2 %"), (0.0031, "0.31 %"), (0, "0.0 %")]
)
def test_share(value: float, words: str) -> None:
    assert wording.share(value) == words


def test_sizes_and_counts() -> None:
    sizes = [wording.megabytes(size) for size in (400_000, 12_400_000, 2_132_000_000)]
    assert sizes == ["0.4 MB", "12 MB", "2.1 GB"]
    assert [wording.count(n, "round") for n in (1, 4)] == ["1 round", "4 rounds"]
    assert [wording.signed(x) for x in (0.0123, -0.0081)] == ["+0.0123", "−0.00810"]
