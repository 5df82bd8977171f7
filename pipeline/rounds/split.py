"""The held-out split: made once before round 1, frozen in a manifest, never trained on.

Every candidate of every round is judged on the same pictures with the same noise at the same
timesteps (common random numbers), so that two losses differ only by what the weights do.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.artefacts.chain import VERSIONS
from pipeline.artefacts.files import write_text
from pipeline.artefacts.identity import fingerprint
from pipeline.artefacts.records import Record
from pipeline.errors import RequestError, UrushiError
from pipeline.recipe.rounds import HELD_OUT_LEAST as LEAST
from pipeline.recipe.rounds import HELD_OUT_MOST as MOST
from pipeline.train.counted import seed_of, uniform

TIMESTEPS = 1000


class HeldOutPicture(Record):
    """One picture of the manifest."""

    md5: str
    chooses: bool
    """Whether it is of the half that strengths are chosen on; the other half judges."""
    timesteps: tuple[int, ...]
    """One in each equal part of [0, 1000), so that all noise levels count alike."""
    noise_seeds: tuple[int, ...]
    """One per timestep."""


class Split(Record):
    """The manifest of one dataset."""

    dataset: str
    latents: str
    """Fingerprint of the latents that it was drawn from."""
    drawn_from: str
    """Fingerprint of all that the draw depends on."""
    held_out: tuple[HeldOutPicture, ...]

    @property
    def md5s(self) -> frozenset[str]:
        return frozenset(picture.md5 for picture in self.held_out)

    @property
    def chooses(self) -> tuple[HeldOutPicture, ...]:
        """The half that strengths are chosen on."""
        return tuple(picture for picture in self.held_out if picture.chooses)

    @property
    def judges(self) -> tuple[HeldOutPicture, ...]:
        """The half that says whether a round helped, and that losses are reported of."""
        return tuple(picture for picture in self.held_out if not picture.chooses)


def draw_split(
    dataset: str,
    latents: str,
    md5s: Sequence[str],
    share: float,
    timesteps: int,
    seed: int,
    groups: Sequence[Sequence[str]] | None = None,
) -> Split:
    """Picks `share` of `md5s` by a hash, at least 4 and at most 512, and freezes their draws.

    The order in which groups are taken depends on the seed and their md5s alone, and so do a
    picture's timesteps and noise. Pictures that come later take their places in that order: most of
    those that were held out stay so, but one may go back to training, or over to the other half.
    Pictures of one group are all trained on, or all choose, or all judge; a group larger than what
    is still wanted is passed over.

    Args:
        groups: of md5s that belong together; None: each by itself.

    Raises:
        RequestError: too few pictures to keep any back, or they belong together.
    """
    count = min(MOST, max(LEAST, round(share * len(md5s))))
    if len(md5s) < 2 * LEAST:
        raise RequestError(
            f"{dataset} has {len(md5s)} pictures; at least {2 * LEAST} are needed, "
            f"{LEAST} of them to judge the rounds by. Widen the query or add pictures."
        )
    ranked = sorted(
        [(md5,) for md5 in md5s] if groups is None else groups,
        key=lambda group: min(seed_of(seed, "held-out", md5) for md5 in group),
    )
    halves: tuple[list[str], list[str]] = ([], [])
    order: list[str] = []
    for group in ranked:
        # The half that judges gets no more than it must: a group goes to the smaller one.
        half = halves[0] if len(halves[0]) <= len(halves[1]) else halves[1]
        if len(order) + len(group) <= count and len(half) + len(group) <= -(-count // 2):
            half.extend(group)
            order.extend(group)
    if min(len(half) for half in halves) < LEAST // 2:
        raise RequestError(
            f"{dataset} has {len(md5s)} pictures, but so many of them are near-duplicates, "
            f"variants or of one artist that {LEAST} to judge by cannot be kept apart. Raise "
            "[rounds].held_out, widen the query or add pictures."
        )
    return Split(
        dataset=dataset,
        latents=latents,
        drawn_from=_drawn_from("held out", latents, ranked, share, timesteps, seed),
        held_out=tuple(_picture(md5, md5 in halves[0], timesteps, seed) for md5 in order),
    )


def draw_anchor(
    dataset: str, latents: str, md5s: Sequence[str], most: int, timesteps: int, seed: int
) -> Split:
    """Up to `most` of `md5s` by a hash, with their draws; none of them chooses a strength.

    Raises:
        RequestError: fewer than 4 pictures.
    """
    if len(md5s) < LEAST:
        raise RequestError(
            f"The anchor {dataset} has {len(md5s)} pictures; at least {LEAST} are needed. "
            "Widen its query or add pictures."
        )
    ranked = sorted(md5s, key=lambda md5: seed_of(seed, "anchor", md5))[:most]
    return Split(
        dataset=dataset,
        latents=latents,
        drawn_from=_drawn_from("anchor", latents, sorted(md5s), most, timesteps, seed),
        held_out=tuple(_picture(md5, False, timesteps, seed) for md5 in ranked),
    )


def _drawn_from(what: str, *asked: Any) -> str:
    return fingerprint(stage=what, version=VERSIONS["split"], asked=asked)


def _picture(md5: str, chooses: bool, timesteps: int, seed: int) -> HeldOutPicture:
    return HeldOutPicture(
        md5=md5,
        chooses=chooses,
        timesteps=_stratified(timesteps, seed, md5),
        noise_seeds=tuple(seed_of(seed, "held-out noise", md5, part) for part in range(timesteps)),
    )


def _stratified(count: int, seed: int, md5: str) -> tuple[int, ...]:
    width = TIMESTEPS / count
    return tuple(
        int((part + uniform(seed, "held-out timestep", md5, part)) * width) for part in range(count)
    )


def frozen_split(path: Path, fresh: Split) -> Split:
    """`fresh`, written to `path` unless it stands there; a draw from something else is replaced.

    What is drawn follows from what it is drawn from, so the file decides nothing: it is there to be
    read, and a change by hand, which would be of no effect, is not passed over in silence.

    Raises:
        UrushiError: the file was changed by hand.
    """
    if path.exists():
        try:
            kept = Split.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise _changed(path, error.errors()[0]["msg"]) from None
        if kept == fresh:
            return kept
        if kept.drawn_from == fresh.drawn_from:
            first, second = (
                {picture.md5: picture for picture in split.held_out} for split in (kept, fresh)
            )
            differ = [md5 for md5 in first | second if first.get(md5) != second.get(md5)]
            raise _changed(path, f"{len(differ)} of its pictures are not as they were drawn")
    write_text(path, fresh.model_dump_json(indent=1) + "\n")
    return fresh


def _changed(path: Path, what: str) -> UrushiError:
    return UrushiError(
        f"{path} was changed by hand: {what}. It only shows what was drawn; [rounds].held_out, "
        "held_out_timesteps and seed in the recipe change that. Put it back or delete it: it is "
        "written again as it was."
    )
