"""build.json: the ledger of a build. One row per round, decisions as data."""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipeline.artefacts.files import write_text
from pipeline.artefacts.records import Record
from pipeline.artefacts.strength import Strength, joined
from pipeline.errors import RequestError, UrushiError

Decision = Literal["accepted", "accepted on retry", "rejected", "always"]


class Candidate(Record):
    """One strength that was tried, and its mean loss on the held-out half used for choosing."""

    strength: float
    loss: float


class Trial(Record):
    """One learning rate that was tried, and its mean held-out loss at its best strength."""

    learning_rate: float
    loss: float


class BucketLoss(Record):
    """Mean held-out loss over the timesteps `first` to `last`."""

    first: int
    last: int
    before: float
    after: float


class LayerRow(Record):
    """One layer after a round."""

    module: str
    """kohya's name, such as lora_unet_mid_block_attentions_0_proj_in."""
    relative: float
    """‖this round's delta at its strength‖ / ‖the origin's weight‖, Frobenius norms."""
    total: float
    """The same of all rounds up to this one together."""
    effective_rank: float
    """Of all rounds together: exp of the entropy of the singular values' shares."""
    intruders: int | None
    """How many of the 10 leading directions of the sum the origin's 64 leading ones do not hold;
    counted where the delta is largest, else None."""


class GrowthFile(Record):
    """rounds/NN/growth.json: what the round did to each layer."""

    cosines: dict[int, float]
    """By earlier merged round: of this round's delta with that one's, over all layers together."""
    layers: tuple[LayerRow, ...]


class Gain(Record):
    """From the origin to the end, on the judging half of the first round's dataset."""

    before: float
    """The origin's mean loss."""
    after: float
    """That of what stands at the end: of the last merged round, or of all strengths fitted."""
    low: float
    high: float
    """95 % bootstrap interval of the mean paired difference before - after."""


class EncoderStrengths(Record):
    """The text encoders' strengths beside the UNet's; of a round that has one for both, that."""

    merged_at: tuple[float, ...]
    fitted: tuple[float, ...]
    strengths: tuple[float, ...]


class Refitted(Record):
    """All strengths fitted together after the last round; builds/NAME/refit.json."""

    rounds: tuple[int, ...]
    """The merged ones, in the order of all strengths here."""
    merged_at: tuple[float, ...]
    fitted: tuple[float, ...]
    """What the choosing half asks for."""
    strengths: tuple[float, ...]
    """What the final checkpoint has: the fitted ones as far as the anchor allows, or those that the
    rounds were merged at."""
    kept: bool
    """Whether the judging half agreed."""
    passes: int
    """Over the choosing half, that the fit took."""
    chosen_before: float
    chosen_after: float
    """Mean loss of the choosing half at merged_at and at fitted."""
    before: float
    after: float
    low: float
    high: float
    """On the judging half, at merged_at and at the fitted strengths that the anchor allows; low and
    high are the 95 % bootstrap interval of the mean paired difference."""
    buckets: tuple[BucketLoss, ...]
    anchor_before: float | None
    anchor_after: float | None
    encoders: EncoderStrengths | None = None
    """None where every round has one strength; else the ones above are the UNet's."""
    origin: Gain | None = None
    """From the origin to these strengths, on all the judging pictures; what stands at the end if
    they were kept. None in a refit of a version that did not measure it."""

    @property
    def final(self) -> tuple[Strength, ...]:
        """What each round adds to the final checkpoint."""
        if self.encoders is None:
            return self.strengths
        pairs = zip(self.strengths, self.encoders.strengths, strict=True)
        return tuple(joined(unet, text) for unet, text in pairs)


class Snapshot(Record):
    """One LoRA on its way, and its mean loss at strength 1 on the choosing half."""

    step: int
    loss: float


class Single(Record):
    """One LoRA by itself, judged three ways: last, at its best checkpoint, and refitted.

    Losses are of the judging half; what is chosen is chosen on the other.
    """

    snapshots: tuple[Snapshot, ...]
    stopped_at: int
    """The step of the best snapshot."""
    strengths: tuple[float, ...]
    """Of the way between one snapshot and the next, the first from nothing: 1 each is the last
    snapshot as it is."""
    origin: float
    last: float
    early_stopped: float
    refitted: float


class BaselineRow(Record):
    """What the rounds are compared with; builds/NAME/baseline.json."""

    learning_rate: float
    steps: int
    """As many as all rounds took, retries too."""
    seconds: float
    """Of its training."""
    single: Single
    rounds: float
    """The final checkpoint's loss on the same pictures, before the cast."""
    low: float
    high: float
    """95 % bootstrap interval of the mean paired difference: the refitted single LoRA's loss minus
    the rounds'. Above 0 the rounds are better."""


class RoundRow(Record):
    """Everything about one finished round."""

    round: int
    dataset: str
    lora: str
    """Relative to the build's folder."""
    sha256: str
    """Of the LoRA file."""
    rank: int
    alpha: float
    learning_rate: float
    """Peak of the attempt that counts."""
    steps: int
    strength: float
    """0 where the round was rejected."""
    heldout_before: float
    heldout_after: float
    """Mean loss on the held-out half that the strength was not chosen on."""
    improvement_low: float
    improvement_high: float
    """95 % bootstrap interval of the mean paired difference before - after."""
    decision: Decision
    candidates: tuple[Candidate, ...]
    attempts: int
    train_loss: float
    """Mean over the last tenth of the steps."""
    wanted: float
    """The strength that the held-out pictures asked for, before the anchor shrank it."""
    final_strength: float
    """The strength in the final checkpoint: another where all were fitted together."""
    buckets: tuple[BucketLoss, ...]
    """Held-out losses by timestep."""
    anchor_before: float | None
    anchor_after: float | None
    """Mean loss of the anchor pictures; None without an anchor set."""
    drift: float
    """Norm of all deltas up to this round over that of the weights they are added to."""
    cosines: dict[int, float]
    """With each earlier merged round: near 0 it went another way, below 0 it took back."""
    effective_rank: float
    """Of all rounds together, the median over the layers; rounds/NN/growth.json has each one's."""
    intruders: int
    """New leading directions, over the layers where they were counted."""
    peak_memory: dict[str, int]
    """Bytes, by "cpu" and "gpu"."""
    versions: dict[str, str]
    """Of the packages that the round was made with."""
    checkpoint_sha256: str
    """Of the merged checkpoint, whether it is kept or not."""
    cast_loss: float
    """Share of this round's delta that the cast to the origin's dtype hides, 0 to 1."""
    seconds: float
    phases: dict[str, float]
    """Seconds by part: train, strength, merge, preview."""
    encoder_strength: float | None = None
    """The text encoders', where `strength` is the UNet's alone; None where it is both's."""
    final_encoder_strength: float | None = None
    """The same of final_strength."""

    @property
    def merged_at(self) -> Strength:
        return joined(self.strength, self.encoder_strength)

    @property
    def final_at(self) -> Strength:
        return joined(self.final_strength, self.final_encoder_strength)


class Ledger(Record):
    """WORKSPACE/builds/NAME/build.json."""

    build: str
    recipe: str
    seed: int
    origin: str
    origin_blake3: str
    prediction_type: str
    status: Literal["running", "finished", "stopped by the gate"]
    stopped: str | None
    """Why the build ended before its rounds were through; None where it did not."""
    trials: tuple[Trial, ...]
    """Of learning_rate = "auto"."""
    refit: Refitted | None
    baseline: BaselineRow | None
    """None unless [baseline] asks for it."""
    heldout_pictures: int
    heldout_origin: float | None
    """The origin's loss on the reporting half; None before round 1 is judged."""
    gain: Gain | None = None
    """From the origin to what stands; None before a round is merged."""
    rounds: tuple[RoundRow, ...]
    final: str | None
    final_sha256: str | None
    final_lora: str | None
    seconds: dict[str, float]
    """Of the data stages, by name."""


def read_ledger(path: Path) -> Ledger:
    """The ledger in `path`.

    Raises:
        RequestError: there is none yet.
        UrushiError: it is damaged.
    """
    try:
        return Ledger.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise RequestError(
            f"There is no {path}: no round of this build is finished yet. `urushi run` with its "
            "recipe trains and merges them."
        ) from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        at = f" at {place}" if place else ""
        raise UrushiError(
            f"{path} is damaged{at}: {problem['msg']}. Delete it; `urushi run` gathers it again."
        ) from None


def write_ledger(path: Path, ledger: Ledger) -> None:
    write_text(path, ledger.model_dump_json(indent=2) + "\n")
