"""Few pictures: 64 to learn from, 32 held out, five rounds or one LoRA, at every rate of a grid.

All strengths are chosen by the program's own rules (`pipeline.rounds`) on the held-out pictures;
every figure is the loss on 2,048 pictures that nothing was chosen on. The anchor is what the base
was taught first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.toys.denoiser import Feed, Samples, fixed, losses, predicted
from benchmarks.toys.pictures import blobs, gratings
from benchmarks.toys.stack import FALLING, Factors, Weights, adam, added, fresh
from pipeline.recipe.rounds import DAMPED
from pipeline.recipe.train import Train
from pipeline.rounds.gate import ceiling, shrink
from pipeline.rounds.refit import Vector, quadratic_of, refit
from pipeline.rounds.strength import search

RANK, ROUNDS, STEPS = 4, 5, 150
CONSTANT = Train(scheduler="constant_with_warmup")
"""The law of a LoRA that may be stopped anywhere."""
LEARN, HELD_OUT, EACH = 64, 32, 8
"""Pictures, and timesteps of each held-out one."""


@dataclass(frozen=True)
class Setting:
    """The base and the pictures, and which (seed, rate) each replica has."""

    weights: Weights
    """(1, out, in)"""
    biases: Weights
    learn: Tensor
    """(seeds, 64, 100)"""
    held_out: tuple[Samples, ...]
    """By replica."""
    test: Samples
    anchor: Samples
    seeds: tuple[int, ...]
    rates: Tensor

    @property
    def replicas(self) -> int:
        return len(self.seeds)

    def feed(self) -> Feed:
        """The batches, the same for every policy."""
        return Feed(self.learn, list(self.seeds))

    def loss(self, weights: Weights, shown: Samples) -> Tensor:
        """(S,): the mean loss of each replica."""
        return losses(weights, self.biases, shown).mean(-1)


@dataclass(frozen=True)
class Result:
    """What a policy came to. All (seeds, rates)."""

    test: Tensor
    anchor: Tensor
    chosen_on: Tensor
    """The loss on the held-out pictures."""
    held_out: Tensor | None = None
    """After each round, (seeds, rates, rounds)."""


def setting(
    weights: Weights, biases: Weights, seeds: Sequence[int], rates: Sequence[float]
) -> Setting:
    """Replicas in order of seeds, then of rates."""
    learn = torch.stack([gratings(LEARN, 1000 + seed) for seed in seeds])
    held = [fixed(gratings(HELD_OUT, 2000 + seed), EACH, 3000 + seed) for seed in seeds]
    return Setting(
        weights=weights,
        biases=biases,
        learn=learn,
        held_out=tuple(one for one in held for _ in rates),
        test=fixed(gratings(2048, 11), 4, 12),
        anchor=fixed(blobs(256, 13), 2, 14),
        seeds=tuple(seed for seed in seeds for _ in rates),
        rates=torch.tensor([rate for _ in seeds for rate in rates]),
    )


class Chain:
    """A base and the deltas laid over it, for every replica: what a strength means here."""

    def __init__(self, where: Setting) -> None:
        self._where = where
        self.base = [w.expand(where.replicas, -1, -1).contiguous() for w in where.weights]
        self.deltas: list[Weights] = []
        self.strengths = torch.zeros(where.replicas, 0)

    def add(self, delta: Weights, strengths: Tensor) -> None:
        """One more delta at (S,) strengths."""
        self.deltas.append(delta)
        self.strengths = torch.cat([self.strengths, strengths[:, None]], 1)

    def weights(self, scale: Tensor | float = 1.0) -> Weights:
        """(S, out, in), all strengths multiplied by `scale`."""
        merged = self.base
        for index, delta in enumerate(self.deltas):
            merged = added(merged, delta, self.strengths[:, index] * scale)
        return merged

    def at(self, replica: int, strengths: Sequence[float]) -> Weights:
        """(1, out, in) of one replica."""
        merged = [weight[replica : replica + 1] for weight in self.base]
        for delta, strength in zip(self.deltas, strengths, strict=True):
            merged = added(merged, [d[replica : replica + 1] for d in delta], float(strength))
        return merged

    def loss(self, replica: int, strengths: Sequence[float], shown: Samples | None = None) -> float:
        """Of one replica on its held-out pictures, or on `shown`."""
        weights = self.at(replica, strengths)
        return float(self._where.loss(weights, shown or self._where.held_out[replica]))

    def refit(self) -> None:
        """All strengths of every replica together, by the program's own rule."""
        for replica in range(self._where.replicas):

            def residuals(strengths: Sequence[float], replica: int = replica) -> Vector:
                shown = self._where.held_out[replica]
                said = predicted(self.at(replica, strengths), self._where.biases, shown.inputs)
                return (said - shown.noise).flatten().double().numpy()

            def loss(strengths: Sequence[float], replica: int = replica) -> float:
                return self.loss(replica, strengths)

            start = [float(s) for s in self.strengths[replica]]
            found = refit(loss, quadratic_of(residuals), start)
            self.strengths[replica] = torch.tensor(found.strengths)

    def copy(self) -> "Chain":
        """The same deltas at strengths of its own."""
        twin = Chain(self._where)
        twin.deltas, twin.strengths = list(self.deltas), self.strengths.clone()
        return twin

    def shrunk_to(self, times: float) -> Result:
        """All strengths of a replica by one factor, so that its anchor loss is at most `times` the
        base's."""
        limit = times * float(self._where.loss(self._where.weights, self._where.anchor))
        scales = []
        for replica in range(self._where.replicas):
            strengths = self.strengths[replica].tolist()

            def anchor(
                scale: float, replica: int = replica, strengths: list[float] = strengths
            ) -> float:
                return self.loss(replica, [s * scale for s in strengths], self._where.anchor)

            scales.append(shrink(anchor, 1.0, limit).strength)
        return self.result(torch.tensor(scales))

    def result(self, scale: Tensor | float = 1.0, held: list[Tensor] | None = None) -> Result:
        """The test and the anchor loss, as (seeds, rates)."""
        weights = self.weights(scale)
        seeds = len(set(self._where.seeds))
        return Result(
            test=self._where.loss(weights, self._where.test).view(seeds, -1),
            anchor=self._where.loss(weights, self._where.anchor).view(seeds, -1),
            chosen_on=_held_out(self._where, weights).view(seeds, -1),
            held_out=None if held is None else torch.stack(held, -1).view(seeds, -1, len(held)),
        )


Rule = Callable[[Chain, int], float]
"""A chain whose last delta is this round's, and a replica, into the strength to merge it at."""


def whole(chain: Chain, replica: int) -> float:
    """Merge always."""
    return 1.0


def damped(chain: Chain, replica: int) -> float:
    """Half of every round."""
    return DAMPED


def searched(chain: Chain, replica: int) -> float:
    """`strength = "auto"`."""
    before = [float(s) for s in chain.strengths[replica][:-1]]
    return search(lambda strength: chain.loss(replica, [*before, strength])).best


def anchored(where: Setting, first: Rule, total: float | None) -> Rule:
    """The first rule's strength, shrunk to +25 % of the anchor loss a round and `total` in all."""

    def rule(chain: Chain, replica: int) -> float:
        before = [float(s) for s in chain.strengths[replica][:-1]]

        def anchor(strength: float) -> float:
            return chain.loss(replica, [*before, strength], where.anchor)

        origin = chain.loss(replica, [0.0] * len(chain.deltas), where.anchor)
        most = ceiling(anchor(0.0), origin, total)
        return shrink(anchor, first(chain, replica), most).strength

    return rule


def rounds(where: Setting, rule: Rule) -> tuple[Chain, list[Tensor]]:
    """Five rounds from fresh starts; the chain and the held-out loss after each round."""
    chain, feed, held = Chain(where), where.feed(), []
    for number in range(ROUNDS):
        base = chain.weights()
        factors = fresh(base, RANK, [seed * 101 + number for seed in where.seeds])
        _train(where, base, factors, feed, STEPS)
        chain.add(factors.deltas(), torch.ones(where.replicas))
        for replica in range(where.replicas):
            chain.strengths[replica, -1] = rule(chain, replica)
        held.append(_held_out(where, chain.weights()))
    return chain, held


def single(where: Setting, rank: int, law: Train = FALLING) -> Chain:
    """One LoRA of as many steps; its five checkpoints' steps are the chain's deltas."""
    chain, done = Chain(where), []
    factors = fresh(chain.base, rank, [seed * 101 for seed in where.seeds])

    def keep(step: int) -> None:
        if step % STEPS == 0:
            done.append(factors.deltas())

    _train(where, chain.base, factors, where.feed(), ROUNDS * STEPS, keep, law)
    _lay(chain, done)
    return chain


def full(where: Setting, share: float) -> Chain:
    """Full fine-tuning at `share` of every rate; checkpoints as of `single`."""
    chain, done, feed = Chain(where), [], where.feed()
    weights = [weight.clone() for weight in chain.base]

    def loss(step: int) -> Tensor:
        return losses(weights, where.biases, feed.next()).mean(-1)

    def keep(step: int) -> None:
        if step % STEPS == 0:
            done.append([w.clone() - b for w, b in zip(weights, chain.base, strict=True)])

    adam(weights, loss, ROUNDS * STEPS, where.rates * share, after=keep)
    _lay(chain, done)
    return chain


def early_stopped(where: Setting, chain: Chain) -> Chain:
    """The checkpoint of least held-out loss, or the base, replica by replica."""
    stopped = chain.copy()
    for replica in range(where.replicas):
        options = [[1.0] * kept + [0.0] * (ROUNDS - kept) for kept in range(ROUNDS + 1)]
        best = min(options, key=lambda strengths: chain.loss(replica, strengths))
        stopped.strengths[replica] = torch.tensor(best)
    return stopped


def _train(
    where: Setting,
    base: Weights,
    factors: Factors,
    feed: Feed,
    steps: int,
    after: Callable[[int], None] = lambda step: None,
    law: Train = FALLING,
) -> None:
    def loss(step: int) -> Tensor:
        return losses(base, where.biases, feed.next(), factors).mean(-1)

    adam(factors.tensors(), loss, steps, where.rates, after=after, law=law)


def _lay(chain: Chain, done: list[Weights]) -> None:
    """Checkpoints into the steps between them."""
    for index, delta in enumerate(done):
        before = done[index - 1] if index else [torch.zeros_like(d) for d in delta]
        chain.add([d - b for d, b in zip(delta, before, strict=True)], torch.ones(len(delta[0])))


def _held_out(where: Setting, weights: Weights) -> Tensor:
    return torch.cat(
        [
            where.loss([w[r : r + 1] for w in weights], where.held_out[r])
            for r in range(where.replicas)
        ]
    )
