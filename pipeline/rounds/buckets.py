"""Losses by timestep: what a mean hides, such as colours learnt at the cost of composition."""

from pipeline.artefacts.ledger import BucketLoss
from pipeline.rounds.evaluate import Losses
from pipeline.rounds.split import TIMESTEPS


def bucket_losses(before: Losses, after: Losses) -> tuple[BucketLoss, ...]:
    """Means over the pictures of each equal part of [0, 1000), from (pictures, timesteps)."""
    parts = before.shape[1]
    return tuple(
        BucketLoss(
            first=round(TIMESTEPS * part / parts),
            last=round(TIMESTEPS * (part + 1) / parts) - 1,
            before=float(before[:, part].mean()),
            after=float(after[:, part].mean()),
        )
        for part in range(parts)
    )
