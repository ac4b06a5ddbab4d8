"""Batches of the bilevel problem: one item per outer step, made of its inner steps and its validation batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import lightning as L
from torch.utils.data import DataLoader, Dataset, Sampler

from flexora.data.batch import Batch
from flexora.data.batching import MicroBatch, RowStream, group_rows
from flexora.data.rows import EncodedRows

if TYPE_CHECKING:
    from flexora.data.multiple_choice import MultipleChoiceDataModule


class OuterBatch(TypedDict):
    """The data of one outer step.

    Attributes:
        train: For each inner step its micro-batches, ``[inner_steps][accumulate]``.
        validation: The micro-batches of the outer objective, ``[validation_batches]``.
    """

    train: list[list[Batch]]
    validation: list[Batch]


@dataclass(frozen=True)
class OuterBatches(Dataset[OuterBatch]):
    """Outer step k as a pure function of k and the seed."""

    train: EncodedRows
    validation: EncodedRows
    batch_size: int
    inner_steps: int
    accumulate: int
    validation_batches: int
    seed: int

    def __getitem__(self, step: int) -> OuterBatch:
        micro = self._draw(self.train, step, self.inner_steps * self.accumulate, self.seed)
        groups = [micro[start : start + self.accumulate] for start in range(0, len(micro), self.accumulate)]
        validation = self._draw(self.validation, step, self.validation_batches, self.seed + 1)
        return OuterBatch(train=groups, validation=validation)

    def _draw(self, rows: EncodedRows, step: int, batches: int, seed: int) -> list[Batch]:
        size = batches * self.batch_size
        drawn = RowStream(len(rows), seed).take(step * size, size)
        grouped = group_rows(drawn, rows.lengths, self.batch_size, seed=(seed, step))
        return [rows.__getitems__(MicroBatch(group, 0)) for group in grouped]


class StepsFrom(Sampler[int]):
    """The outer steps that remain; a resumed search moves ``start`` on before the loader is made."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.start = 0

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))


class BilevelDataModule(L.LightningDataModule):
    """A benchmark's rows as outer batches: Lightning sees one batch per outer step and one epoch of them.

    Args:
        rows: The benchmark. Its ``train_set`` feeds the inner steps, its ``validation_set`` the outer objective.
        outer_steps: Number of outer steps K.
        inner_steps: Inner steps T of each outer step.
        batch_size: Rows of each micro-batch.
        accumulate: Micro-batches of each inner step.
        validation_batches: Micro-batches of the outer objective.
    """

    def __init__(
        self,
        rows: MultipleChoiceDataModule,
        outer_steps: int,
        inner_steps: int,
        batch_size: int,
        accumulate: int,
        validation_batches: int,
    ) -> None:
        super().__init__()
        self.rows = rows
        self.inner_steps = inner_steps
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.validation_batches = validation_batches
        self.steps = StepsFrom(outer_steps)

    def prepare_data(self) -> None:
        """Fill the caches once per machine."""
        self.rows.prepare_data()

    def train_dataloader(self) -> DataLoader[OuterBatch]:
        """One item per outer step."""
        rows = self.rows
        batches = OuterBatches(
            train=EncodedRows(rows.train_set, rows.pad_token, all_choices=False),
            validation=EncodedRows(rows.validation_set, rows.pad_token, all_choices=False),
            batch_size=self.batch_size,
            inner_steps=self.inner_steps,
            accumulate=self.accumulate,
            validation_batches=self.validation_batches,
            seed=rows.seed,
        )
        return DataLoader(batches, batch_size=None, sampler=self.steps)
