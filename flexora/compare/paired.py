"""Differences of two arms on the same rows with the same seeds: row by row with bootstrap intervals, or by seed.

The former are paired twice: each is the mean of a matrix d of seeds by rows. Its interval draws seeds and rows
independently, with replacement: the pigeonhole bootstrap of crossed effects (Owen 2007, doi:10.1214/07-AOAS122). No
bootstrap is exact for them (McCullagh 2000, doi:10.2307/3318577). In d's three parts this one counts the rows' variance
fully, that of single cells up to three times, and the seeds' with the factor (S - 1) / S of S seeds, which is made up
for: the deviations of the seeds' means are widened by sqrt(S / (S - 1)) before they are drawn.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self, TypeVar

import numpy as np

from flexora.errors import FlexoraError

RESAMPLES = 10_000
COVERAGE = 0.95
_CELLS = 4_000_000  # counts held at a time, 32 MB

Value = TypeVar("Value")

#: Share of right answers over draws, ``[rows]``, for each seed; the seed is none for an arm that has none.
Answers = Mapping[int | None, np.ndarray]


class Mean(NamedTuple):
    """A mean over seeds and its standard error; none where there is one seed."""

    value: float
    stderr: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Mean and standard error of one value for each seed."""
        stderr = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(float(np.mean(values)), stderr)

    @classmethod
    def over(cls, means: Sequence[Mean]) -> Mean:
        """Mean of independent means, each counting alike."""
        errors = [mean.stderr for mean in means if mean.stderr is not None]
        stderr = math.hypot(*errors) / len(means) if len(errors) == len(means) else None
        return cls(float(np.mean([mean.value for mean in means])), stderr)


@dataclass(frozen=True)
class Difference:
    """A paired difference, as a share of right answers.

    Attributes:
        value: Mean over seeds and rows.
        low: Lower end of the 95 % bootstrap interval.
        high: Upper end.
        seeds: Smallest number of paired seeds; with one the interval is over rows alone.
        samples: Bootstrapped values, ``[RESAMPLES]``.
    """

    value: float
    low: float
    high: float
    seeds: int
    samples: np.ndarray = field(repr=False, compare=False)

    @classmethod
    def of(cls, value: float, samples: np.ndarray, seeds: int) -> Self:
        """A difference with the percentile interval of its bootstrapped values."""
        low, high = np.quantile(samples, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
        return cls(value, float(low), float(high), seeds, samples)

    @classmethod
    def mean(cls, differences: Sequence[Difference]) -> Self:
        """Mean of independent differences, each counting alike."""
        value = float(np.mean([difference.value for difference in differences]))
        samples = np.mean([difference.samples for difference in differences], axis=0)
        return cls.of(value, samples, min(difference.seeds for difference in differences))


def shared_seeds(one: Mapping[int | None, object], other: Mapping[int | None, object]) -> list[int | None]:
    """Seeds that both have; an arm without seeds goes with each of the other's."""
    if None in one or None in other:
        return list(other if None in one else one)
    return [seed for seed in one if seed in other]


def of_seed(values: Mapping[int | None, Value], seed: int | None) -> Value:
    """The value of a seed; that of an arm without seeds is the same for all."""
    return values[None] if None in values else values[seed]


def paired_difference(arm: Answers, reference: Answers, name: str) -> Difference | None:
    """Mean difference of two arms with its interval, or none where they share no seed.

    Args:
        arm: Right answers of the one.
        reference: Right answers of the other, whose mean is subtracted.
        name: Starts the random numbers, so that they do not depend on which other arms there are.

    Raises:
        FlexoraError: If they answered different numbers of rows.
    """
    seeds = shared_seeds(arm, reference)
    if not seeds:
        return None
    if len({len(right) for right in (*arm.values(), *reference.values())}) > 1:
        raise FlexoraError(f"outcomes.csv: {name}: another number of rows than the reference; score both on the same")
    d = np.stack([of_seed(arm, seed) - of_seed(reference, seed) for seed in seeds])
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    return Difference.of(float(d.mean()), crossed_bootstrap(d, RESAMPLES, generator), len(seeds))


def paired_by_seed(arm: Mapping[int | None, float], reference: Mapping[int | None, float]) -> Mean | None:
    """Mean difference of two arms' scores over the seeds, with its standard error, or none where they share none."""
    d = [of_seed(arm, seed) - of_seed(reference, seed) for seed in shared_seeds(arm, reference)]
    return Mean.of(d) if d else None


def crossed_bootstrap(d: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Means of resampled seeds and rows: ``s.T @ d @ r`` with counts s and r of how often each was drawn.

    The deviations of the seeds' means are widened first, so that their variance is the unbiased one. Rows that are
    alike in all seeds are drawn together: there are far fewer kinds of rows than rows.

    Args:
        d: ``[seeds, rows]``.
        resamples: How many means.
        generator: Random numbers.

    Returns:
        ``[resamples]``.
    """
    seeds, rows = d.shape
    kinds, sizes = np.unique(d, axis=1, return_counts=True)
    widening = np.sqrt(seeds / max(seeds - 1, 1)) - 1
    kinds = kinds + widening * (d.mean(axis=1, keepdims=True) - d.mean())
    means = []
    for start in range(0, resamples, chunk := max(1, _CELLS // len(sizes))):
        count = min(chunk, resamples - start)
        of_rows = generator.multinomial(rows, sizes / rows, count)
        of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), count)
        means.append(((of_rows @ kinds.T) * of_seeds).sum(axis=1) / (seeds * rows))
    return np.concatenate(means)
