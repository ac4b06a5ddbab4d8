"""Which estimator chooses the better layers for the same price? SmolLM2-135M, equal numbers of gradients.

``python -m tests.benchmarks.estimators --file estimators.csv`` after ``flexora fetch demo``. Every estimator gets the
same number of gradients (a forward and backward pass each: equal time), chooses the same number of layers, and a fresh
LoRA is fine-tuned on them with the search's training rows. Its loss is measured on a third part of the train split,
which neither the search nor the fine-tune has seen. Finished rows are kept: the same command goes on where it stopped.
The last table has, over seeds, the mean loss and the mean Jaccard overlap of the chosen layers.
"""

from __future__ import annotations

import argparse
import csv
import time
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import lightning as L
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from rich.table import Table

from flexora import ArcEasy, Backbone, FinetuneModule, SearchModule, TopK
from flexora.search.estimators import Estimator, FirstOrder, Unrolled
from flexora.search.stability import mean_jaccard, random_jaccard

#: Name: estimator, inner steps T, gradients an outer step.
ARMS: dict[str, tuple[Estimator, int, int]] = {
    "first order, T 1": (FirstOrder(), 1, 2),
    "first order, T 2": (FirstOrder(), 2, 3),
    "first order, T 4": (FirstOrder(), 4, 5),
    "unrolled, T 1": (Unrolled(), 1, 4),
    "unrolled, T 2": (Unrolled(), 2, 7),
    "unrolled, T 4": (Unrolled(), 4, 13),
    "unrolled, T 8": (Unrolled(), 8, 25),
    "unrolled, last 1 of 4": (Unrolled(last=1), 4, 7),
}
LAYERS = 30


class ThirdPart(ArcEasy):
    """The same training rows; held out are rows that the search has never seen."""

    third = 400

    def split(self, draw: int = 0) -> tuple[Dataset, Dataset]:
        train, _ = super().split(draw)
        start = self.validation_rows + (self.train_rows or 0)
        return train, self._train_split.select(self._train_order[start : start + self.third])


def trainer(**settings: Any) -> L.Trainer:
    """A Trainer that leaves nothing behind."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return L.Trainer(devices=1, accelerator="auto", **quiet, **settings)


def measure(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Search, fine-tune, and score the third part."""
    rows = {"source": "packaged", "train_rows": 480, "validation_rows": 256, "seed": seed, "batch_size": 16}
    adapter = LoraConfig(r=8, lora_alpha=16)
    chosen, seconds = list(range(LAYERS)), 0.0
    if arm != "all layers":
        estimator, inner_steps, gradients = ARMS[arm]
        outer_steps = round(options.gradients / gradients)
        search = SearchModule(
            Backbone(),
            adapter,
            outer_steps=outer_steps,
            inner_steps=inner_steps,
            estimator=estimator,
            rule=TopK(options.layers),
            # Adam moves alpha by about its learning rate a step: the same way in all, however many steps there are.
            alpha_lr=1.0 / outer_steps,
            average_last=max(1, outer_steps // 4),
            seed=seed,
        )
        start = time.perf_counter()
        data = ArcEasy(**rows).bilevel(outer_steps, inner_steps, search.batch_size)
        trainer(max_epochs=1).fit(search, datamodule=data)
        chosen, seconds = search.selection().layers, time.perf_counter() - start
    finetune = FinetuneModule(Backbone(), adapter, selection=",".join(map(str, chosen)), seed=seed)
    held_out = ThirdPart(**rows)
    trainer(max_epochs=options.epochs, limit_val_batches=0).fit(finetune, datamodule=held_out)
    (scores,) = trainer().validate(finetune, datamodule=held_out)
    result = {"arm": arm, "seed": seed, "loss": f"{scores['val_loss']:.4f}", "search_seconds": f"{seconds:.0f}"}
    return result | {"layers": " ".join(map(str, chosen))}


def read(file: Path) -> list[dict[str, str]]:
    """The rows that are finished."""
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def summarise(rows: list[dict[str, str]]) -> None:
    """Mean loss over seeds, and how far the chosen layers agree."""
    table = Table("estimator", "seeds", "loss on the third part", "Jaccard", "random", "seconds of search")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        losses = [float(row["loss"]) for row in own]
        choices = [list(map(int, row["layers"].split())) for row in own]
        several = len(own) > 1
        table.add_row(
            arm,
            str(len(own)),
            f"{mean(losses):.4f}" + (f" ± {stdev(losses) / len(losses) ** 0.5:.4f}" if several else ""),
            f"{mean_jaccard(choices):.2f}" if several else "",
            f"{random_jaccard([len(choice) for choice in choices], LAYERS):.2f}" if several else "",
            f"{mean(float(row['search_seconds']) for row in own):.0f}",
        )
    Console(width=120).print(table)


def main() -> None:
    """Measure what is missing, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file", type=Path, required=True, help="the finished rows")
    parser.add_argument("--gradients", type=int, default=200, help="gradients of each search")
    parser.add_argument("--layers", type=int, default=10, help="layers that each search chooses")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of each fine-tune")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for seed, arm in product(range(options.seeds), ["all layers", *ARMS]):
        done = read(options.file)
        if any((row["arm"], row["seed"]) == (arm, str(seed)) for row in done):
            continue
        row = measure(arm, seed, options)
        with options.file.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if not done:
                writer.writeheader()
            writer.writerow(row)
        print(row, flush=True)
    summarise(read(options.file))


if __name__ == "__main__":
    main()
