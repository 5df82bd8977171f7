"""The factor on a round's delta: one number, or one for the UNet and one for the text encoders.

Pure. Text encoders have one of their own where [rounds].encoders_apart asks for it.
"""

Strength = float | tuple[float, float]
"""Everywhere; or (UNet, text encoders)."""

TEXT = "lora_te"
"""What kohya's names of text encoders' layers begin with."""


def parted(strength: Strength) -> tuple[float, float]:
    """(UNet, text encoders)."""
    return strength if isinstance(strength, tuple) else (strength, strength)


def on(strength: Strength, layer: str) -> float:
    """The factor on `layer`, by kohya's name of it."""
    unet, text = parted(strength)
    return text if layer.startswith(TEXT) else unet


def adds(strength: Strength) -> bool:
    """Whether it leaves anything of a delta."""
    return any(factor > 0 for factor in parted(strength))


def shrunk(strength: Strength, share: float) -> Strength:
    """`share` of it, to four digits."""
    if isinstance(strength, tuple):
        return round(strength[0] * share, 4), round(strength[1] * share, 4)
    return round(strength * share, 4)


def joined(unet: float, text: float | None) -> Strength:
    """From records, which keep the text encoders' apart. Two equal ones are one strength for both:
    what adds the same compares equal."""
    return unet if text is None or text == unet else (unet, text)


def told(strength: Strength) -> str:
    """For a person."""
    if isinstance(strength, tuple):
        return f"{strength[0]:g} (text encoders {strength[1]:g})"
    return f"{strength:g}"


def asked(strength: Strength) -> str:
    """As `urushi merge --strength` reads it, exactly."""
    if isinstance(strength, tuple):
        return f"unet={strength[0]!r},te={strength[1]!r}"
    return repr(strength)
