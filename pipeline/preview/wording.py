"""Numbers as a person reads them: rates, losses, shares, durations, sizes."""

from pipeline.artefacts.strength import Strength


def rate(value: float) -> str:
    """A learning rate: 5e-5, 1.47e-3."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def loss(value: float) -> str:
    return f"{value:.4f}"


def signed(value: float) -> str:
    """A difference of losses with its sign, a true minus where it is negative; finer if small."""
    return f"{value:+.{4 if abs(value) >= 0.01 else 5}f}".replace("-", "\N{MINUS SIGN}")


def cosine(value: float | None) -> str:
    """+0.03, a true minus where it is negative; a dash for none."""
    return "\N{EN DASH}" if value is None else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def share(value: float) -> str:
    """0..1 as a percentage: 70 %, 4.2 %, 0.31 %."""
    percent = 100 * value
    digits = 0 if abs(percent) >= 10 else 1 if abs(percent) >= 1 or percent == 0 else 2
    return f"{percent:.{digits}f} %"


def duration(seconds: float) -> str:
    """0.4 s, 42 s, 3 min 12 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def megabytes(size: int) -> str:
    """Bytes as 0.4 MB, 12 MB, 2.1 GB (powers of 1000, as disks are sold)."""
    if size >= 10**9:
        return f"{size / 10**9:.1f} GB"
    return f"{size / 10**6:.1f} MB" if size < 10**7 else f"{size / 10**6:.0f} MB"


def count(number: int, noun: str) -> str:
    """1 round, 4 rounds, 12,000 pictures."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def strength(value: Strength) -> str:
    """0.80; with the text encoders' beside the UNet's where they have one of their own."""
    if isinstance(value, tuple):
        return f"{value[0]:.2f} (text encoders {value[1]:.2f})"
    return f"{value:.2f}"
