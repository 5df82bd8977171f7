"""Pictures without end: what rounds reach in as many steps as one LoRA, by how a round starts.

Rank 2, five rounds, strength 1, a cosine inside each round. The directions that a carried round
keeps come from the program's own `pipeline.train.carry`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.toys.denoiser import Feed, fixed, losses
from benchmarks.toys.pictures import gratings
from benchmarks.toys.stack import Factors, Weights, adam, added, fresh
from pipeline.train.carry import Part, leading

RANK, ROUNDS = 2, 5
GRADIENT_BATCHES = 8
KAIMING = 3**-0.5
"""The norm of a row that Kaiming draws, which directions of the gradient are given too."""


@dataclass(frozen=True)
class Problem:
    """A base and pictures; one replica for each seed."""

    weights: Weights
    """(1, out, in)"""
    biases: Weights
    seeds: tuple[int, ...]
    pool: Tensor
    """(N, 100)"""

    def feed(self, salt: int = 0) -> Feed:
        """Batches, the same for every policy."""
        return Feed(self.pool[None], [seed + salt for seed in self.seeds])

    def judge(self, weights: Weights) -> "Judged":
        """The losses at 4 timesteps of each picture, for choosing a rate and for the table."""
        choosing, test = fixed(gratings(512, 23), 4, 24), fixed(gratings(2048, 21), 4, 22)
        first, second = (losses(weights, self.biases, s).mean(-1) for s in (choosing, test))
        return Judged(first, second)

    def spread(self) -> Weights:
        """The base for every seed."""
        return [w.expand(len(self.seeds), -1, -1).contiguous() for w in self.weights]


@dataclass(frozen=True)
class Judged:
    """(S,) each: losses on 512 pictures that rates are chosen on, and on 2,048 others."""

    choosing: Tensor
    test: Tensor


@dataclass(frozen=True)
class Round:
    """What a start may look at."""

    problem: Problem
    base: Weights
    """With all earlier rounds in it."""
    number: int
    last: Factors | None
    """The LoRA before, as it was trained."""

    def draw(self) -> Factors:
        """A fresh LoRA."""
        return fresh(self.base, RANK, [s * 101 + self.number for s in self.problem.seeds])


Start = Callable[[Round], tuple[Weights, Factors]]
"""Into the base that a round trains on and its LoRA; together they are the base before."""


def fresh_start(round_: Round) -> tuple[Weights, Factors]:
    """A new down by Kaiming, up 0."""
    return round_.base, round_.draw()


def kept_start(round_: Round) -> tuple[Weights, Factors]:
    """The down of the round before, up 0."""
    factors = round_.draw()
    if round_.last is not None:
        factors.down = [down.clone() for down in round_.last.down]
    return round_.base, factors


def gradient_start(round_: Round) -> tuple[Weights, Factors]:
    """The gradient's top right singular vectors, up 0."""
    factors = round_.draw()
    factors.down = [_right(g, RANK) for g in _gradient(round_)]
    return round_.base, factors


def carried_start(round_: Round) -> tuple[Weights, Factors]:
    """Half of the last LoRA's directions, still trainable; the gradient's beside them."""
    if round_.last is None:
        return gradient_start(round_)
    kept = _carried(round_.last)
    beside = [
        torch.cat([down, _right(g - (g @ q) @ q.mT, RANK - down.shape[1])], 1)
        for g, down in zip(_gradient(round_), kept.down, strict=True)
        for q in (torch.linalg.qr(down.mT).Q,)
    ]
    ups = [torch.cat([up, up.new_zeros(*up.shape[:2], RANK - up.shape[2])], 2) for up in kept.up]
    return added(round_.base, kept.deltas(), -1.0), Factors(ups, beside)


def principal_start(round_: Round) -> tuple[Weights, Factors]:
    """The weights' own leading directions, out of the base."""
    ups, downs = [], []
    for weight in round_.base:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        root = values[:, None, :RANK].sqrt()
        ups.append((left[:, :, :RANK] * root).contiguous())
        downs.append((right[:, :RANK] * root.mT).contiguous())
    factors = Factors(ups, downs)
    return added(round_.base, factors.deltas(), -1.0), factors


STARTS: tuple[tuple[str, Start], ...] = (
    ("fresh", fresh_start),
    ("kept", kept_start),
    ("gradient", gradient_start),
    ("carried", carried_start),
    ("pissa", principal_start),
)
"""(name in recipes, what it does)."""


def rounds(problem: Problem, start: Start, steps: int, rate: float, count: int = ROUNDS) -> Judged:
    """After `count` rounds of `steps` in all."""
    base, last, feed = problem.spread(), None, problem.feed()
    for number in range(count):
        base, last = start(Round(problem, base, number, last))
        _train(problem, base, last, feed, steps // count, rate)
        base = added(base, last.deltas())
    return problem.judge(base)


def single(problem: Problem, rank: int, steps: int, rate: float) -> Judged:
    """One LoRA."""
    base = problem.spread()
    factors = fresh(base, rank, [seed * 101 for seed in problem.seeds])
    _train(problem, base, factors, problem.feed(), steps, rate)
    return problem.judge(added(base, factors.deltas()))


def full(problem: Problem, steps: int, rate: float) -> Judged:
    """Full fine-tuning."""
    weights, feed = [w.clone() for w in problem.spread()], problem.feed()

    def loss(step: int) -> Tensor:
        return losses(weights, problem.biases, feed.next()).mean(-1)

    adam(weights, loss, steps, torch.full((len(problem.seeds),), rate))
    return problem.judge(weights)


def _train(
    problem: Problem, base: Weights, factors: Factors, feed: Feed, steps: int, rate: float
) -> None:
    def loss(step: int) -> Tensor:
        return losses(base, problem.biases, feed.next(), factors).mean(-1)

    adam(factors.tensors(), loss, steps, torch.full((len(problem.seeds),), rate))


def _gradient(round_: Round) -> Weights:
    """(S, out, in) per layer: of the mean loss over a few batches."""
    weights = [weight.clone().requires_grad_(True) for weight in round_.base]
    feed = round_.problem.feed(salt=1000 * (round_.number + 1))
    total = [torch.zeros_like(weight) for weight in weights]
    for _ in range(GRADIENT_BATCHES):
        mean = losses(weights, round_.problem.biases, feed.next()).mean(-1).sum()
        total = [t + g for t, g in zip(total, torch.autograd.grad(mean, weights), strict=True)]
    return total


def _right(gradient: Tensor, count: int) -> Tensor:
    return torch.linalg.svd(gradient, full_matrices=False).Vh[:, :count] * KAIMING


def _carried(last: Factors) -> Factors:
    ups: list[Sequence[Tensor]] = []
    downs: list[Sequence[Tensor]] = []
    for up, down in zip(last.up, last.down, strict=True):
        pairs = [leading([Part(u, d, 1.0)], RANK // 2) for u, d in zip(up, down, strict=True)]
        ups.append([pair.up for pair in pairs])
        downs.append([pair.down for pair in pairs])
    return Factors([torch.stack(list(u)) for u in ups], [torch.stack(list(d)) for d in downs])
