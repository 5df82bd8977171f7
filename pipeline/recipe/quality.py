"""Score words: cuts, percentiles, and the schemes that public models were trained with."""

from typing import Annotated, Literal, TypeVar

from pydantic import Field, field_validator

from pipeline.recipe.section import Section

Word = Annotated[str, Field(min_length=1)]
Cuts = tuple[tuple[int, Word], ...]
"""(least score, word), from the highest down: a picture gets the first word that it reaches."""

Within = Literal["site", "rating", "year"]


class Percentiles(Section):
    """Words by rank among comparable pictures, not by the score itself: scores differ from site to
    site, rise with the rating, and have grown over the years."""

    words: tuple[tuple[Annotated[float, Field(ge=0, le=100)], Word], ...] = Field(min_length=1)
    """(least percentile, word), from the highest down."""
    within: tuple[Within, ...] = ("site", "rating", "year")
    """What makes pictures comparable. Groups of fewer than `least` are joined, the last of these
    left out first."""
    least: int = Field(30, ge=1)
    """Pictures that a group needs before ranks in it mean anything."""

    @field_validator("words")
    @classmethod
    def _falls(cls, words: tuple[tuple[float, str], ...]) -> tuple[tuple[float, str], ...]:
        return falling(words)


Cut = TypeVar("Cut", int, float)


def falling(words: tuple[tuple[Cut, str], ...]) -> tuple[tuple[Cut, str], ...]:
    """`words` as they are; raises ValueError where a later one asks for as much or more."""
    cuts = [cut for cut, _ in words]
    if cuts != sorted(set(cuts), reverse=True):
        raise ValueError("scores must fall from the first word to the last")
    return words


Scheme = Literal["urushi", "animagine-3.0", "animagine-3.1", "noobai", "pony-like"]

LOWEST = -(10**9)
"""Under every score that a site gives."""

SCHEMES: dict[Scheme, Cuts | Percentiles] = {
    # The cuts of the original SD 1.5 build: net Danbooru scores, far looser than Animagine's.
    "urushi": ((60, "masterpiece"), (18, "best quality"), (6, "high quality")),
    # Animagine XL 3.0's model card: net scores.
    "animagine-3.0": (
        (151, "masterpiece"),
        (100, "best quality"),
        (75, "high quality"),
        (25, "medium quality"),
        (0, "normal quality"),
        (-5, "low quality"),
        (LOWEST, "worst quality"),
    ),
    # Animagine XL 3.1's model card: percentiles, balanced over ratings.
    "animagine-3.1": Percentiles(
        words=(
            (95, "masterpiece"),
            (85, "best quality"),
            (75, "great quality"),
            (50, "good quality"),
            (25, "normal quality"),
            (10, "low quality"),
            (0, "worst quality"),
        ),
        within=("site", "rating"),
    ),
    # NoobAI XL's model card: percentiles by source and rating, old scores discounted; the year as a
    # group stands for that discount here.
    "noobai": Percentiles(
        words=(
            (95, "masterpiece"),
            (85, "best quality"),
            (60, "good quality"),
            (30, "normal quality"),
            (0, "worst quality"),
        ),
    ),
    # Pony Diffusion V6's words and shares. Pony ranked by an aesthetic model, this ranks by score,
    # so the words mean something near, not the same.
    "pony-like": Percentiles(
        words=(
            (90, "score_9, score_8_up, score_7_up, score_6_up, score_5_up, score_4_up"),
            (80, "score_8_up, score_7_up, score_6_up, score_5_up, score_4_up"),
            (70, "score_7_up, score_6_up, score_5_up, score_4_up"),
            (60, "score_6_up, score_5_up, score_4_up"),
            (50, "score_5_up, score_4_up"),
            (40, "score_4_up"),
        ),
    ),
}
