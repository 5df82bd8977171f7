"""What rounds buy and what they don't: every policy beside one LoRA, on problems of minutes.

    python benchmarks/rounds.py [--quick] [--json FILE] [--keep FOLDER] [--only PART …]

Figures (losses are means of three seeds on pictures that nothing was chosen on):

cure_gain_vs_always      at four times always-merge's best rate, by what share `auto` with its refit
                         lies below it: 64 pictures to learn from, 32 held out, five rounds
cure_gain_vs_early_stop  the same against one LoRA with early stopping
rate_robustness          of `damped` with its refit, the worst loss over the best, rates 1 to 32
anchor_frontier_gain     at an anchor loss no higher than always-merge's at its best rate, by what
                         share rounds lie below one LoRA, both shrunk to that; each at its best rate
rank_law_error           most that K rounds of rank r lie above the best approximation of rank K r
variance_ratio           of "did it help", independent draws over paired ones
long_gain_vs_single      pictures without end, rank 2: rounds against one LoRA at 4,000 steps
short_gain_vs_single     the same at 1,000 steps
sd_gain_vs_single        the tiny Stable Diffusion, rank 2, 960 steps, two seeds: the program's own
                         builds of two rounds, half of the first carried over, against one LoRA

Then every row of the tables, by name. --keep holds finished rows, so that a run may be cut short
and gone on with. In full above half an hour on two cores; --quick shows that everything runs.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

# A script's own folder comes first, and there a benchmark is called what a room is.
# Its processes take the path over from it.
if str(Path(__file__).parent) in sys.path:
    sys.path.remove(str(Path(__file__).parent))
    sys.path.append(str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.toys import few, linear, many, paired, tiny_sd
from benchmarks.toys.denoiser import Feed, losses, pretrained
from benchmarks.toys.pictures import blobs, gratings
from benchmarks.toys.stack import Weights, adam, added, fresh

Figures = dict[str, float]
DEFAULT_START = "fresh"
SD_DEFAULT = "carried, 2, cut at 1/4"
SD_RATE = 8e-3
"""Best of four for one LoRA of this rank at a quarter of the steps."""
FORGETTING = (1.25, 1.5, 1.75, 2.0, 2.5)
"""Times the base's anchor loss, to which whole chains are shrunk."""
FOUR_TIMES = 2
"""Places in the grid of rates, whose neighbours differ by a factor of two."""


@dataclass(frozen=True)
class Size:
    """How much is run."""

    seeds: tuple[int, ...] = (0, 1, 2)
    pretraining: int = 6000
    few_rates: tuple[float, ...] = (3.75e-4, 7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2)
    short: int = 1000
    long: int = 4000
    repeats: int = 300
    law_steps: int = 3200
    sd_pictures: int = 500
    sd_steps: int = 960
    sd_seeds: tuple[int, ...] = (0, 1)


FULL = Size()
QUICK = Size(
    seeds=(0,),
    pretraining=300,
    few_rates=(1.5e-3, 6e-3),
    short=50,
    long=100,
    repeats=40,
    law_steps=1600,
    sd_pictures=40,
    sd_steps=8,
    sd_seeds=(0,),
)
SHORT_RATES, LONG_RATES = (1.2e-2, 2.4e-2), (6e-3, 1.2e-2)
PRINCIPAL_RATES = (3e-3, 6e-3, 1.2e-2)
"""Where a LoRA begins at the weights' own directions, whose rows are longer."""
FULL_SHARE = 0.1
"""Full fine-tuning is given a tenth of a LoRA's rates."""


@dataclass(frozen=True)
class Task:
    """A row or a few of the tables, made by one process."""

    name: str
    run: Callable[[], Figures]


def tasks(size: Size, base: Path) -> Iterator[Task]:
    """Everything there is to do, the long ones first."""
    for name in tiny_sd.POLICIES:
        for seed in size.sd_seeds:
            yield Task(f"sd {name} seed {seed}", partial(sd_row, size, base.parent, name, seed))
    for steps, rates in ((size.long, LONG_RATES), (size.short, SHORT_RATES)):
        for name in ("single", *dict(many.STARTS), "pissa once", "total rank", "full"):
            for rate in PRINCIPAL_RATES if name.startswith("pissa") else rates:
                task = f"many {steps} {name} {rate:g}"
                yield Task(task, partial(many_row, size, base, name, steps, rate))
    for name in FEW:
        yield Task(f"few {name}", partial(few_rows, size, base, name))
    for count in (1, 4, 16):
        yield Task(f"law {count}", partial(law_row, size, count))
    yield Task("variance", partial(variance_rows, size, base))


def sd_row(size: Size, folder: Path, name: str, seed: int) -> Figures:
    """One policy on the tiny Stable Diffusion."""
    loss = tiny_sd.final_loss(folder / "sd", name, seed, size.sd_steps, SD_RATE)
    return {f"sd {name} seed {seed} loss": loss}


def law_row(size: Size, count: int) -> Figures:
    """One number of rounds of the linear problem."""
    found = linear.rank_law(count, steps=size.law_steps, seeds=size.seeds[:2])
    return {
        f"law K={count} residual": found.residual,
        f"law K={count} floor": found.floor,
        f"law K={count} error": found.error,
    }


def variance_rows(size: Size, base: Path) -> Figures:
    """Paired against independent evaluation of one more short round."""
    weights, biases = _read(base)
    feed = Feed(gratings(20_000, 41)[None], [0])

    def tuned(start: Weights, steps: int, rate: float, seed: int) -> Weights:
        factors = fresh(start, few.RANK, [seed])
        adam(
            factors.tensors(),
            lambda step: losses(start, biases, feed.next(), factors).mean(-1),
            steps,
            torch.tensor([rate]),
        )
        return added(start, factors.deltas())

    before = tuned(weights, 600, 6e-3, 1)
    after = tuned(before, 60, 6e-3, 2)
    found = paired.spread(before, after, biases, size.repeats)
    return {f"variance {name}": value for name, value in vars(found).items()} | {
        "variance_ratio": found.ratio
    }


def many_row(size: Size, base: Path, name: str, steps: int, rate: float) -> Figures:
    """One policy at one rate on pictures without end."""
    problem = many.Problem(*_read(base), size.seeds, gratings(120_000, 3))
    if name == "single":
        found = many.single(problem, many.RANK, steps, rate)
    elif name == "total rank":
        found = many.single(problem, many.RANK * many.ROUNDS, steps, rate)
    elif name == "pissa once":
        found = many.rounds(problem, many.principal_start, steps, rate, count=1)
    elif name == "full":
        found = many.full(problem, steps, rate * FULL_SHARE)
    else:
        found = many.rounds(problem, dict(many.STARTS)[name], steps, rate)
    label = f"many {steps} {name} {rate:g}"
    return {
        f"{label} choosing": float(found.choosing.mean()),
        f"{label} test": float(found.test.mean()),
        f"{label} deviation": float(found.test.std()) if len(found.test) > 1 else 0.0,
    }


def few_rows(size: Size, base: Path, name: str) -> Figures:
    """One policy, and what is made of its LoRAs afterwards, at every rate."""
    where = few.setting(*_read(base), size.seeds, size.few_rates)
    rows: Figures = {
        "few base test": float(where.loss(where.weights, where.test)),
        "few base anchor": float(where.loss(where.weights, where.anchor)),
    }
    for label, result in FEW[name](where):
        for column, rate in enumerate(size.few_rates):
            key = f"few {label} {rate:g}"
            rows[f"{key} test"] = float(result.test[:, column].mean())
            rows[f"{key} anchor"] = float(result.anchor[:, column].mean())
            if result.chosen_on is not None:
                rows[f"{key} chosen on"] = float(result.chosen_on[:, column].mean())
            if len(size.seeds) > 1:
                rows[f"{key} deviation"] = float(result.test[:, column].std())
            if result.held_out is not None:
                for number in range(few.ROUNDS):
                    loss = float(result.held_out[:, column, number].mean())
                    rows[f"{key} held-out {number + 1}"] = loss
    return rows


Rows = Iterator[tuple[str, few.Result]]


def _chain(name: str, rule: few.Rule, where: few.Setting) -> Rows:
    chain, held = few.rounds(where, rule)
    yield name, chain.result(held=held)
    yield from _shrunk(name, chain)
    chain.refit()
    yield f"{name} + refit", chain.result()
    yield from _shrunk(f"{name} + refit", chain)


def _shrunk(name: str, chain: few.Chain) -> Rows:
    """Where no more than so much may be forgotten."""
    for times in FORGETTING:
        yield f"{name}, anchor {times:g}", chain.shrunk_to(times)


def _single(where: few.Setting) -> Rows:
    chain = few.single(where, few.RANK, few.CONSTANT)
    yield "single", chain.result()
    stopped = few.early_stopped(where, chain)
    yield "single, early stop", stopped.result()
    yield from _shrunk("single, early stop", stopped)
    chain.refit()
    yield "single, checkpoints refitted", chain.result()
    yield from _shrunk("single, checkpoints refitted", chain)


def _cosine(where: few.Setting) -> Rows:
    yield "single, cosine", few.single(where, few.RANK).result()


def _anchored(where: few.Setting) -> Rows:
    chain, held = few.rounds(where, few.anchored(where, few.searched, None))
    yield "auto, anchor +25 % a round", chain.result(held=held)


def _alone(name: str, make: Callable[[few.Setting], few.Chain], where: few.Setting) -> Rows:
    chain = make(where)
    yield name, chain.result()
    yield f"{name}, early stop", few.early_stopped(where, chain).result()


def _total_rank(where: few.Setting) -> few.Chain:
    return few.single(where, few.RANK * few.ROUNDS, few.CONSTANT)


def _full(where: few.Setting) -> few.Chain:
    return few.full(where, FULL_SHARE)


FEW: dict[str, Callable[[few.Setting], Rows]] = {
    "always": partial(_chain, "always", few.whole),
    "auto": partial(_chain, "auto", few.searched),
    "damped": partial(_chain, "damped", few.damped),
    "single": _single,
    "cosine": _cosine,
    "anchored": _anchored,
    "rank": partial(_alone, "total rank", _total_rank),
    "full": partial(_alone, "full", _full),
}


def headline(rows: Figures, size: Size) -> Figures:
    """The named figures, of whatever rows there are."""
    found: Figures = {}
    errors = [value for name, value in rows.items() if name.endswith(" error")]
    if errors:
        found["rank_law_error"] = max(errors)
    if all(f"few {name} {size.few_rates[0]:g} test" in rows for name in CURE):
        found |= _cure(rows, size)
    for figure, steps in (("long_gain_vs_single", size.long), ("short_gain_vs_single", size.short)):
        single, default = (_tuned(rows, steps, name) for name in ("single", DEFAULT_START))
        if single and default:
            found[figure] = 1 - default / single
    policies = {name: _seeds_mean(rows, size, name) for name in ("single", SD_DEFAULT)}
    if all(policies.values()):
        found["sd_gain_vs_single"] = 1 - policies[SD_DEFAULT] / policies["single"]
    return found


def _seeds_mean(rows: Figures, size: Size, name: str) -> float:
    """Of the tiny Stable Diffusion's losses; 0 where some are missing."""
    losses = [rows.get(f"sd {name} seed {seed} loss", 0.0) for seed in size.sd_seeds]
    return sum(losses) / len(losses) if all(losses) else 0.0


CURE = ("always", "auto + refit", "damped + refit", "single, early stop")


def _cure(rows: Figures, size: Size) -> Figures:
    losses = {name: [rows[f"few {name} {rate:g} test"] for rate in size.few_rates] for name in CURE}
    always, auto, robust, single = losses.values()
    best = always.index(min(always))
    high = min(len(always) - 1, best + FOUR_TIMES)
    forgets = rows[f"few always {size.few_rates[best]:g} anchor"] / rows["few base anchor"]
    found = {
        "cure_gain_vs_always": 1 - auto[high] / always[high],
        "cure_gain_vs_early_stop": 1 - auto[high] / single[high],
        "rate_robustness": max(robust) / min(robust),
    }
    allowed = [times for times in FORGETTING if times <= forgets]
    if allowed:
        times = f"anchor {max(allowed):g}"
        shrunk = [_at_best_rate(rows, size, f"{name}, {times}") for name in FRONTIER]
        one = _at_best_rate(rows, size, f"single, early stop, {times}")
        found["anchor_frontier_gain"] = 1 - min(shrunk) / one
    return found


FRONTIER = ("auto", "auto + refit", "damped", "damped + refit")
"""Policies that are shrunk to what always-merge forgets; the best of them counts."""


def _at_best_rate(rows: Figures, size: Size, name: str) -> float:
    """The test loss at the rate of least held-out loss."""
    best = min(size.few_rates, key=lambda rate: rows[f"few {name} {rate:g} chosen on"])
    return rows[f"few {name} {best:g} test"]


def _tuned(rows: Figures, steps: int, name: str) -> float | None:
    """The test loss at the rate that is best on other pictures; None without rows."""
    label = f"many {steps} {name} "
    rates = [key for key in rows if key.startswith(label) and key.endswith(" choosing")]
    if not rates:
        return None
    best = min(rates, key=lambda key: rows[key])
    return rows[best.replace(" choosing", " test")]


def run(todo: list[Task], keep: Path, processes: int) -> Figures:
    """Does the tasks that `keep` has no rows of; returns all rows."""
    rows: Figures = {}
    open_tasks = []
    for task in todo:
        done = keep / f"{''.join(c if c.isalnum() or c in '.-' else '-' for c in task.name)}.json"
        if done.exists():
            rows |= json.loads(done.read_text(encoding="utf-8"))
        else:
            open_tasks.append((task, done))
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(task.run): (task, done) for task, done in open_tasks}
        for future in as_completed(futures):
            task, done = futures[future]
            done.write_text(json.dumps(future.result(), indent=1) + "\n")
            rows |= future.result()
            sys.stderr.write(f"{task.name}\n")
    return rows


def _read(base: Path) -> tuple[Weights, Weights]:
    weights, biases = torch.load(base)
    return weights, biases


def main() -> None:
    """Measures, prints, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where finished rows stay")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="at once, of a core")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="tasks whose names have them all")
    asked = parser.parse_args()
    size = QUICK if asked.quick else FULL
    torch.set_num_threads(1)
    with ExitStack() as stack:
        keep = asked.keep or Path(stack.enter_context(TemporaryDirectory()))
        keep.mkdir(parents=True, exist_ok=True)
        base = keep / "base.pt"
        if not base.exists():
            torch.save(pretrained(blobs(60_000, 1), size.pretraining, 0), base)
        todo = [t for t in tasks(size, base) if all(w in t.name.split() for w in asked.only or ())]
        if any(t.name.startswith("sd ") for t in todo) and not (keep / "sd").exists():
            tiny_sd.prepare(keep / "sd", size.sd_pictures)
        rows = run(todo, keep, asked.processes)
    figures = headline(rows, size) | rows
    ordered = sorted(figures, key=lambda name: (" " in name, name))
    sys.stdout.write("\n".join(f"{name:56} {figures[name]:.5g}" for name in ordered) + "\n")
    if asked.json is not None:
        table = {name: figures[name] for name in ordered}
        asked.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
