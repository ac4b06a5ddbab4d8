"""Which rows go together: length-grouped batches whose order is a pure function of seed, epoch and step.

Nothing here keeps random state, so a run resumes at any step by knowing the step's number alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

Numbers = Sequence[int] | np.ndarray

#: Rows are sorted by length within this many batches: long enough to save padding, short enough to keep shuffling.
GROUP = 50


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass, and the terms of the loss in the whole optimiser step that it belongs to."""

    rows: list[int]
    normalizer: int


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """A shuffled order of ``count`` rows that depends on seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def sorted_batches(lengths: Numbers, batch_size: int) -> list[list[int]]:
    """All rows in batches of like length, longest first, so that memory peaks at the start."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]


def token_batches(lengths: Numbers, max_tokens: int) -> list[list[int]]:
    """All rows in batches of like length whose padded size stays within ``max_tokens``, longest first.

    A row that is longer than that has a batch of its own.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        size = max(1, max_tokens // int(lengths[order[start]]))
        batches.append(order[start : start + size].tolist())
        start += size
    return batches


class LengthGroupedBatches(Sampler[MicroBatch]):
    """Shuffled batches of rows of like length, for the fine-tune.

    Rows are shuffled, sorted by length within groups of :data:`GROUP` batches, cut into batches, and the batches are
    shuffled again. Every row comes once an epoch; a last short batch is kept.

    Args:
        lengths: Tokens of each row.
        terms: Terms of the loss of each row.
        batch_size: Rows of one forward pass.
        accumulate: Forward passes of one optimiser step.
        seed: Seed of the order.
    """

    def __init__(self, lengths: Numbers, terms: Numbers, batch_size: int, accumulate: int = 1, seed: int = 0) -> None:
        self.lengths = np.asarray(lengths)
        self.terms = np.asarray(terms)
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.seed = seed
        self.epoch = 0

    @property
    def sampler(self) -> LengthGroupedBatches:
        """Itself: Lightning passes the epoch on to ``dataloader.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[MicroBatch]:
        order = permutation(len(self.lengths), self.seed, self.epoch)
        batches: list[list[int]] = []
        group = GROUP * self.batch_size
        for start in range(0, len(order), group):
            chunk = order[start : start + group]
            batches += [chunk[batch].tolist() for batch in sorted_batches(self.lengths[chunk], self.batch_size)]
        batches = [batches[index] for index in permutation(len(batches), self.seed + 1, self.epoch)]
        for start in range(0, len(batches), self.accumulate):
            step = batches[start : start + self.accumulate]
            total = int(sum(self.terms[rows].sum() for rows in step))
            yield from (MicroBatch(rows, total) for rows in step)


@dataclass(frozen=True)
class RowStream:
    """An endless shuffled stream of rows, epoch after epoch, addressed by position: the search draws from it.

    Attributes:
        count: Number of rows.
        seed: Seed of the order.
    """

    count: int
    seed: int

    def take(self, start: int, size: int) -> np.ndarray:
        """Rows ``start`` to ``start + size - 1`` of the stream, ``[size]``."""
        first, last = start // self.count, (start + size - 1) // self.count
        epochs = np.concatenate([permutation(self.count, self.seed, epoch) for epoch in range(first, last + 1)])
        offset = start - first * self.count
        return epochs[offset : offset + size]


def group_rows(rows: np.ndarray, lengths: np.ndarray, batch_size: int, seed: Sequence[int]) -> list[list[int]]:
    """Cut drawn rows into batches of like length, in an order that depends on ``seed`` alone."""
    batches = [rows[batch].tolist() for batch in sorted_batches(lengths[rows], batch_size)]
    return [batches[index] for index in np.random.default_rng(list(seed)).permutation(len(batches))]
