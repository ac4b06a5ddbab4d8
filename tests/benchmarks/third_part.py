"""What the oracle is made of: searches, fine-tunes scored on rows that no search has seen, a file of finished rows."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from datasets import Dataset
from peft import LoraConfig

from flexora import FinetuneModule, MultipleChoiceDataModule, SearchModule
from flexora.search.estimators import Estimator
from flexora.search.rules import SelectionRule


class Arm(NamedTuple):
    """How a search estimates its hypergradient, and the gradients that an outer step takes."""

    estimator: Estimator
    inner_steps: int
    validation_batches: int
    gradients: int


def adapter() -> LoraConfig:
    """LoRA of the searches and the fine-tunes."""
    return LoraConfig(r=8, lora_alpha=16)


def third_part(benchmark: type[MultipleChoiceDataModule], rows: int) -> type[MultipleChoiceDataModule]:
    """The benchmark with the same training rows; held out are rows that the search has never seen."""

    class ThirdPart(benchmark):  # type: ignore[misc, valid-type]
        def split(self, draw: int = 0) -> tuple[Dataset, Dataset]:
            train, _ = super().split(draw)
            start = self.validation_rows + self.train_rows
            return train, self.train_split.select(self._train_order[start : start + rows])

    return ThirdPart


def trainer(**settings: Any) -> L.Trainer:
    """A Trainer that leaves nothing behind."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return L.Trainer(**{"devices": 1, "accelerator": "auto", **quiet, **settings})


def search(
    data: MultipleChoiceDataModule,
    arm: Arm,
    gradients: int,
    batch_size: int,
    rule: SelectionRule,
    **settings: Any,
) -> SearchModule:
    """A finished search of so many gradients, whose alpha is averaged over the last quarter of its steps."""
    outer_steps = round(gradients / arm.gradients)
    module = SearchModule(
        data.backbone,
        adapter(),
        outer_steps=outer_steps,
        inner_steps=arm.inner_steps,
        batch_size=batch_size,
        validation_batches=arm.validation_batches,
        estimator=arm.estimator,
        rule=rule,
        # Adam moves alpha by about its learning rate a step: the same way in all, however many steps there are.
        alpha_lr=1.0 / outer_steps,
        average_last=max(1, outer_steps // 4),
        seed=data.seed,
    )
    rows = data.bilevel(outer_steps, arm.inner_steps, batch_size, validation_batches=arm.validation_batches)
    trainer(max_epochs=1, **settings).fit(module, datamodule=rows)
    return module


def finetuned_loss(layers: Sequence[int], held_out: MultipleChoiceDataModule, epochs: int, **settings: Any) -> float:
    """Loss on the held-out rows after a fine-tune of a fresh LoRA on some layers; in nats per answer token."""
    selection = ",".join(map(str, layers))
    finetune = FinetuneModule(held_out.backbone, adapter(), selection=selection, seed=held_out.seed)
    trainer(max_epochs=epochs, limit_val_batches=0, **settings).fit(finetune, datamodule=held_out)
    (scores,) = trainer(**settings).validate(finetune, datamodule=held_out)
    return float(scores["val_loss"])


def read(file: Path) -> list[dict[str, str]]:
    """The rows that are finished."""
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def append(file: Path, row: dict[str, Any]) -> None:
    """Add a finished row."""
    new = not file.is_file()
    with file.open("a", newline="") as lines:
        writer = csv.DictWriter(lines, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)
