"""[baseline]: what the rounds are compared with."""

from pipeline.recipe.section import Section


class Baseline(Section):
    """What the rounds are compared with, trained after them and shown beside them."""

    single: bool = False
    """Whether to train one LoRA of the same rank for as many steps as all rounds took, judge it
    where it is best, and with the steps between its checkpoints fitted as strengths."""
