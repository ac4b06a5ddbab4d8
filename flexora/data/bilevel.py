"""Batches of the bilevel problem: one item per outer step, made of its inner steps and its validation batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

import lightning as L
from torch.utils.data import DataLoader, Dataset, Sampler

from flexora.data.batch import Batch
from flexora.data.batching import MicroBatch, RowStream, group_rows
from flexora.data.rows import EncodedRows

if TYPE_CHECKING:
    from flexora.data.datamodule import AnswerDataModule


#: Seeds of successive repeats lie this far apart, away from the seeds that users count up.
REPEAT_STRIDE = 1_000_003


class OuterBatch(TypedDict):
    """The data of one outer step.

    Attributes:
        outer_step: Its number, from 0.
        train: For each inner step this process's micro-batches, ``[inner_steps][accumulate]``.
        validation: This process's micro-batches of the outer objective, ``[validation_batches]``.
    """

    outer_step: int
    train: list[list[Batch]]
    validation: list[Batch]


@dataclass(frozen=True)
class OuterBatches(Dataset[OuterBatch]):
    """Outer step k as a pure function of k and the seed.

    Attributes:
        rows: The benchmark.
        outer_steps: Outer steps of each repeat; repeats have their own order and their own held-out rows.
        batch_size: Rows of each micro-batch.
        inner_steps: Inner steps of each outer step.
        accumulate: Micro-batches of each inner step in each process.
        validation_batches: Micro-batches of the outer objective in each process.
        rank: This process.
        world_size: Number of processes; the micro-batches of a step are dealt to them in turn.
    """

    rows: AnswerDataModule
    outer_steps: int
    batch_size: int
    inner_steps: int
    accumulate: int
    validation_batches: int
    rank: int = 0
    world_size: int = 1
    _splits: dict[int, tuple[EncodedRows, EncodedRows]] = field(default_factory=dict, init=False, repr=False)

    def __getitem__(self, outer_step: int) -> OuterBatch:
        repeat, step = divmod(outer_step, self.outer_steps)
        if repeat not in self._splits:
            train, validation = self.rows.split(repeat)
            self._splits[repeat] = (
                self.rows.training_rows(train, self.rows.objective),
                self.rows.training_rows(validation, self.rows.validation_objective),
            )
        train, validation = self._splits[repeat]
        seed = self.rows.seed + repeat * REPEAT_STRIDE
        return OuterBatch(
            outer_step=outer_step,
            train=self._draw(train, step, self.inner_steps, self.accumulate, seed),
            validation=self._draw(validation, step, 1, self.validation_batches, seed + 1)[0],
        )

    def _draw(self, rows: EncodedRows, step: int, gradients: int, batches: int, seed: int) -> list[list[Batch]]:
        """The micro-batches of successive gradients: of each gradient's, every process takes its own."""
        joint = batches * self.world_size
        size = gradients * joint * self.batch_size
        drawn = RowStream(len(rows), seed).take(step * size, size)
        grouped = group_rows(drawn, rows.lengths, self.batch_size, seed=(seed, step))
        own = [grouped[start + self.rank : start + joint : self.world_size] for start in range(0, len(grouped), joint)]
        return [[rows.__getitems__(MicroBatch(group, 0)) for group in groups] for groups in own]


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
        outer_steps: Number of outer steps K of each repeat.
        inner_steps: Inner steps T of each outer step.
        batch_size: Rows of each micro-batch.
        accumulate: Micro-batches of each inner step, in each process.
        validation_batches: Micro-batches of the outer objective, in each process.
        repeats: Repeats, each with an order and held-out rows of its own.
    """

    def __init__(
        self,
        rows: AnswerDataModule,
        outer_steps: int,
        inner_steps: int,
        batch_size: int,
        accumulate: int,
        validation_batches: int,
        repeats: int = 1,
    ) -> None:
        super().__init__()
        self.rows = rows
        self.outer_steps = outer_steps
        self.inner_steps = inner_steps
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.validation_batches = validation_batches
        self.repeats = repeats
        self.steps = StepsFrom(outer_steps * repeats)

    def prepare_data(self) -> None:
        """Fill the caches once per machine."""
        self.rows.prepare_data()

    def train_dataloader(self) -> DataLoader[OuterBatch]:
        """One item per outer step."""
        batches = OuterBatches(
            rows=self.rows,
            outer_steps=self.outer_steps,
            batch_size=self.batch_size,
            inner_steps=self.inner_steps,
            accumulate=self.accumulate,
            validation_batches=self.validation_batches,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )
        return DataLoader(batches, batch_size=None, sampler=self.steps)
