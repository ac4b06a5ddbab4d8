"""Which rows go together: length-grouped batches whose order is a pure function of seed, epoch and step.

Nothing here keeps random state, so a run resumes at any step by knowing the step's number alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from torch.utils.data import Sampler

Numbers = Sequence[int] | np.ndarray

#: Rows are sorted by length within this many batches: of PIQA's tokens 3 % are padding then, with 50 it is 10 %.
GROUP = 200


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward pass, and the terms of the loss in the whole optimiser step that it belongs to.

    Infinitely many terms make the rows count for nothing: every process must make as many passes as the others.
    """

    rows: list[int]
    normalizer: float


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """A shuffled order of ``count`` rows that depends on seed and epoch alone."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def length_batches(lengths: Numbers, batch_size: int | None = None, max_tokens: int | None = None) -> list[list[int]]:
    """All rows in batches of like length, longest first, so that memory peaks at the start.

    Args:
        lengths: Tokens of each row.
        batch_size: Most rows of a batch; any number by default.
        max_tokens: Most tokens of a batch, padding included; a row that is longer has a batch of its own.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        size = len(order) if batch_size is None else batch_size
        if max_tokens is not None:
            size = min(size, max(1, max_tokens // int(lengths[order[start]])))
        batches.append(order[start : start + size].tolist())
        start += size
    return batches


@dataclass(frozen=True)
class Share:
    """Which batches of all are this process's: they are dealt in turn, and each process makes as many passes.

    Attributes:
        rank: Number of this process, from 0.
        world_size: Number of processes.
    """

    rank: int = 0
    world_size: int = 1

    def of(self, batches: Sequence[list[int]], normalizer: float = 0) -> list[MicroBatch]:
        """This process's share; who gets none in the last turn repeats the last batch, which counts for nothing then.

        Args:
            batches: The rows of each batch of all processes.
            normalizer: What the batches that count are divided by.
        """
        own = [MicroBatch(rows, normalizer) for rows in batches[self.rank :: self.world_size]]
        if len(own) < math.ceil(len(batches) / self.world_size):
            own.append(MicroBatch(batches[-1], math.inf))
        return own


class LengthGroupedBatches(Sampler[MicroBatch]):
    """Shuffled batches of rows of like length, for the fine-tune.

    Rows are shuffled, sorted by length within groups of :data:`GROUP` batches, cut into batches, and the batches are
    shuffled again. Every row comes once an epoch; a last short batch is kept. Several processes are dealt the batches
    of each optimiser step in turn, so that they make the steps that one process makes which accumulates as much more.

    Args:
        lengths: Tokens of each row.
        terms: Terms of the loss of each row.
        batch_size: Most rows of one forward pass.
        accumulate: Forward passes of one optimiser step, in each process.
        seed: Seed of the order.
        max_tokens: Most tokens of one forward pass, padding included. How many batches that makes depends on the rows
            that come together, so they are the same in every epoch then, and their order alone changes.
        share: This process's share.

    Attributes:
        start: Batches of the next iteration that are left out at its beginning, in the middle of an epoch that is gone
            on with; later ones are whole again.
    """

    def __init__(
        self,
        lengths: Numbers,
        terms: Numbers,
        batch_size: int,
        accumulate: int = 1,
        seed: int = 0,
        max_tokens: int | None = None,
        share: Share | None = None,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.terms = np.asarray(terms)
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.seed = seed
        self.max_tokens = max_tokens
        self.share = share or Share()
        self.epoch = 0
        self.start = 0

    @property
    def sampler(self) -> LengthGroupedBatches:
        """Itself: Lightning passes the epoch on to ``dataloader.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    @property
    def step_size(self) -> int:
        """Batches of one optimiser step, in all processes."""
        return self.accumulate * self.share.world_size

    def __len__(self) -> int:
        whole, rest = divmod(self._count, self.step_size)
        return whole * self.accumulate + math.ceil(rest / self.share.world_size)

    @cached_property
    def _count(self) -> int:
        """Batches of an epoch, in all processes."""
        if self.max_tokens is None:
            return math.ceil(len(self.lengths) / self.batch_size)
        return len(self._batches(0))

    def _batches(self, epoch: int) -> list[list[int]]:
        """The batches of an epoch, before they are shuffled."""
        order = permutation(len(self.lengths), self.seed, epoch)
        batches: list[list[int]] = []
        group = GROUP * self.batch_size
        for start in range(0, len(order), group):
            chunk = order[start : start + group]
            cut = length_batches(self.lengths[chunk], self.batch_size, self.max_tokens)
            batches += [chunk[batch].tolist() for batch in cut]
        return batches

    def __iter__(self) -> Iterator[MicroBatch]:
        start, self.start = self.start, 0
        yield from islice(self._shares(), start, None)

    def _shares(self) -> Iterator[MicroBatch]:
        """This process's batches of an epoch, in their order."""
        batches = self._batches(self.epoch if self.max_tokens is None else 0)
        batches = [batches[index] for index in permutation(len(batches), self.seed + 1, self.epoch)]
        for start in range(0, len(batches), self.step_size):
            step = batches[start : start + self.step_size]
            total = int(sum(self.terms[rows].sum() for rows in step))
            yield from self.share.of(step, total)


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
    batches = [rows[batch].tolist() for batch in length_batches(lengths[rows], batch_size)]
    return [batches[index] for index in np.random.default_rng(list(seed)).permutation(len(batches))]
