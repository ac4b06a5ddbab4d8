"""Means, standard errors and differences of a study's arms, from its rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean, median
from typing import Any, TypeVar

import numpy as np

from flexora.compare.paired import Answers, Difference, Mean, paired_by_seed, paired_difference
from flexora.compare.rows import Outcome, ResultRow
from flexora.errors import FlexoraError

Value = TypeVar("Value", float, np.ndarray)


@dataclass(frozen=True)
class ArmStatistics:
    """The figures of an arm on one benchmark, or their means over the benchmarks, each counting alike.

    Draws of a seed are averaged before anything else. Standard errors are over seeds. Losses are nats per answer token.

    Attributes:
        arm: Its name.
        seeds: Number of seeds, 0 for the base model; over benchmarks the smallest.
        draws: Largest number of draws of a seed.
        layers: Number of adapted layers.
        parameters: Number of trainable parameters.
        score: The primary metric.
        loss: On the rows scored.
        last_validation_loss: On held-out rows after the last epoch; as the next two none where some trial has none.
        train_loss: Mean over the last epoch's steps.
        gap: ``last_validation_loss - train_loss``, which over-fitting widens.
        select_seconds: Time of the choice of layers, the median of the trials.
        tune_seconds: Time of the fine-tunes with learning rates that lost, of all trials: the rate is tuned once.
        finetune_seconds: Time of the fine-tune, the median of the trials.
        peak_memory_mb: Largest memory of a trial.
        paired_by_row: Difference of the primary metric to the reference; none for the reference itself, and where
            ``outcomes.csv`` tells no right and wrong rows: of a loss, or of a mixture's average.
        paired_by_seed: The same of the seeds' scores; its standard error is over seeds alone.
        loss_difference: The same of their losses on the rows scored.
    """

    arm: str
    seeds: int
    draws: int
    layers: float
    parameters: float
    score: Mean
    loss: Mean
    last_validation_loss: Mean | None
    train_loss: Mean | None
    gap: Mean | None
    select_seconds: float
    tune_seconds: float
    finetune_seconds: float
    peak_memory_mb: float
    paired_by_row: Difference | None
    paired_by_seed: Mean | None
    loss_difference: Mean | None

    @property
    def difference(self) -> Difference | Mean | None:
        """The sharper of the two that is known."""
        return self.paired_by_row or self.paired_by_seed


@dataclass(frozen=True)
class BenchmarkStatistics:
    """The arms on one benchmark, all scored on the same rows.

    Attributes:
        benchmark: Its name.
        metric: Its primary metric.
        split: What was scored.
        rows: Number of rows.
        arms: The arms that have been run, by name, in the study's order.
        choices: The adapted layers of each trial, by arm.
    """

    benchmark: str
    metric: str
    split: str
    rows: int
    arms: Mapping[str, ArmStatistics]
    choices: Mapping[str, Sequence[set[int]]]

    @property
    def chosen(self) -> dict[str, dict[int, float]]:
        """Share of each arm's trials that adapted a layer, by arm and layer."""
        return {name: _shares(choices) for name, choices in self.choices.items()}


@dataclass(frozen=True)
class StudyStatistics:
    """All figures of a study.

    Attributes:
        reference: The arm that the others are compared with.
        benchmarks: Figures of each benchmark.
        means: Of the arms that have been run on every benchmark, the means; empty where losses and accuracies would
            be averaged. Their standard errors and intervals are over seeds and rows: they speak of these benchmarks,
            not of others.
    """

    reference: str
    benchmarks: Sequence[BenchmarkStatistics]
    means: Mapping[str, ArmStatistics]

    @property
    def metric(self) -> str | None:
        """What the means are of: the one benchmark's metric, ``loss`` or ``score`` of several, none where unlike."""
        metrics = [part.metric for part in self.benchmarks]
        losses = sum(map(lower_is_better, metrics))
        if len(metrics) == 1 or losses == len(metrics) > 0:
            return metrics[0]
        return None if losses else "score"

    @property
    def complete(self) -> list[str]:
        """Names of the arms that have been run on every benchmark."""
        first, *others = [part.arms for part in self.benchmarks] or [{}]
        return [name for name in first if all(name in arms for arms in others)]

    def of(self, benchmark: str) -> StudyStatistics:
        """The figures of one benchmark alone; empty where it has not been run."""
        parts = [part for part in self.benchmarks if part.benchmark == benchmark]
        return replace(self, benchmarks=parts, means=parts[0].arms if parts else {})


def lower_is_better(metric: str | None) -> bool:
    """Whether a metric is a loss, in nats per answer token; the others are shares of right answers."""
    return metric == "loss"


def study_statistics(
    results: Sequence[ResultRow], outcomes: Sequence[Outcome], reference: str, order: Sequence[str] = ()
) -> StudyStatistics:
    """Means, standard errors and paired differences.

    Args:
        results: Lines of ``results.csv``.
        outcomes: Lines of ``outcomes.csv``; without those of a benchmark's metric its differences are paired by seed.
        reference: Name of the arm to compare with; it need not have been run yet.
        order: Names of arms in the order to show; others follow as they come.

    Raises:
        FlexoraError: If a trial is there twice or has no outcomes, or arms were scored on different rows.
    """
    names = list(dict.fromkeys([*order, *(row.arm for row in results)]))
    benchmarks = [
        _benchmark([row for row in results if row.benchmark == benchmark], outcomes, reference, names)
        for benchmark in dict.fromkeys(row.benchmark for row in results)
    ]
    study = StudyStatistics(reference, benchmarks, {})
    if study.metric is None:
        return study
    means = {name: _over_benchmarks([part.arms[name] for part in benchmarks]) for name in study.complete}
    return replace(study, means=means)


def layers_of(text: str) -> set[int]:
    """Layers of a cell of ``results.csv``: ``0, 3, 5-9``; of ``q_proj 3; v_proj 5-9`` those with any projection."""
    spans = re.findall(r"(?<!\w)(\d+)(?:-(\d+))?(?!\w)", text)
    return {layer for first, last in spans for layer in range(int(first), int(last or first) + 1)}


def _benchmark(
    rows: Sequence[ResultRow], outcomes: Sequence[Outcome], reference: str, order: Sequence[str]
) -> BenchmarkStatistics:
    """The figures of one benchmark; ``rows`` are all of its."""
    first = rows[0]
    for row in rows:
        if (row.metric, row.split, row.rows) != (first.metric, first.split, first.rows):
            raise FlexoraError(
                f"results.csv, {first.benchmark}: {row.arm} has {row.metric} of {row.rows:,} {row.split} rows, "
                f"{first.arm} {first.metric} of {first.rows:,} {first.split} rows; score all arms on the same rows"
            )
    trials, times = Counter((row.arm, row.seed, row.draw) for row in rows).most_common(1)[0]
    if times > 1:
        raise FlexoraError(f"results.csv, {first.benchmark}: arm, seed and draw {trials} are there twice; delete one")
    right = {
        (line.arm, line.seed, line.draw): line.unpack()
        for line in outcomes
        if (line.benchmark, line.metric) == (first.benchmark, first.metric)
    }
    own = {name: kept for name in order if (kept := [row for row in rows if row.arm == name])}
    answers = {name: _answers(kept, right) if right else {} for name, kept in own.items()}
    return BenchmarkStatistics(
        first.benchmark,
        first.metric,
        first.split,
        first.rows,
        {
            name: _arm(
                own[name],
                [] if name == reference else own.get(reference, []),
                paired_difference(answers[name], answers.get(reference, {}), f"{first.benchmark} {name}")
                if name != reference
                else None,
            )
            for name in own
        },
        {name: [layers_of(row.layers or "") for row in kept] for name, kept in own.items()},
    )


def _answers(rows: Sequence[ResultRow], right: Mapping[tuple[str, int | None, int], np.ndarray]) -> Answers:
    """Right answers of an arm's trials, by seed."""
    for row in rows:
        bits = right.get((row.arm, row.seed, row.draw))
        if bits is None or len(bits) != row.rows or abs(bits.mean() - row.score) > 1e-4:
            found = "nothing" if bits is None else f"{bits.mean():.4f} on {len(bits):,} rows"
            raise FlexoraError(
                f"{row.benchmark}, {row.arm}, seed {row.seed}: results.csv has {row.metric} {row.score:.4f} on "
                f"{row.rows:,} rows, outcomes.csv {found}; delete the trial's lines and run flexora compare again"
            )
    return _by_seed(rows, lambda row: right[row.arm, row.seed, row.draw])


def _by_seed(rows: Sequence[ResultRow], value: Callable[[ResultRow], Value]) -> dict[int | None, Value]:
    """A value for each seed: the mean of its draws."""
    draws: dict[int | None, list[Value]] = {}
    for row in sorted(rows, key=lambda row: (row.seed or 0, row.draw)):
        draws.setdefault(row.seed, []).append(value(row))
    return {seed: sum(values[1:], start=values[0]) / len(values) for seed, values in draws.items()}


def _mean(rows: Sequence[ResultRow], value: Callable[[ResultRow], float | None]) -> Mean | None:
    """Mean over seeds of the means over draws, or none where a row has no such value."""
    if any(value(row) is None for row in rows):
        return None
    return Mean.of(list(_by_seed(rows, lambda row: float(value(row) or 0.0)).values()))


def _known(rows: Sequence[ResultRow], value: Callable[[ResultRow], float]) -> Mean:
    """Mean over seeds of what every row has."""
    return Mean.of(list(_by_seed(rows, value).values()))


def _gap(row: ResultRow) -> float | None:
    """Over-fitting of one trial."""
    if row.last_validation_loss is None or row.train_loss is None:
        return None
    return row.last_validation_loss - row.train_loss


def _arm(rows: Sequence[ResultRow], reference: Sequence[ResultRow], by_row: Difference | None) -> ArmStatistics:
    """The figures of one arm on one benchmark."""
    scores = [_by_seed(one, lambda row: row.score) for one in (rows, reference)]
    losses = [_by_seed(one, lambda row: row.loss) for one in (rows, reference)]
    return ArmStatistics(
        arm=rows[0].arm,
        seeds=len({row.seed for row in rows} - {None}),
        draws=max(Counter(row.seed for row in rows).values()),
        layers=_known(rows, lambda row: row.adapted_layers).value,
        parameters=_known(rows, lambda row: row.trainable_parameters).value,
        score=_known(rows, lambda row: row.score),
        loss=_known(rows, lambda row: row.loss),
        last_validation_loss=_mean(rows, lambda row: row.last_validation_loss),
        train_loss=_mean(rows, lambda row: row.train_loss),
        gap=_mean(rows, _gap),
        select_seconds=median(row.select_seconds for row in rows),
        tune_seconds=sum(row.tune_seconds for row in rows),
        finetune_seconds=median(row.finetune_seconds for row in rows),
        peak_memory_mb=max(row.peak_memory_mb for row in rows),
        paired_by_row=by_row,
        paired_by_seed=paired_by_seed(*scores),
        loss_difference=paired_by_seed(*losses),
    )


def _shares(choices: Sequence[set[int]]) -> dict[int, float]:
    """Share of choices that hold a layer, by layer."""
    counts = Counter(layer for choice in choices for layer in choice)
    return {layer: count / len(choices) for layer, count in sorted(counts.items())}


def _over_benchmarks(arms: Sequence[ArmStatistics]) -> ArmStatistics:
    """Means of an arm over the benchmarks."""
    averaged = ("layers", "parameters", "select_seconds", "tune_seconds", "finetune_seconds")
    means: dict[str, Any] = {name: fmean(getattr(arm, name) for arm in arms) for name in averaged}
    for part in fields(ArmStatistics):
        values = [getattr(arm, part.name) for arm in arms]
        if any(isinstance(value, Mean) for value in values):
            means[part.name] = None if None in values else Mean.over(values)
    differences = [arm.paired_by_row for arm in arms if arm.paired_by_row is not None]
    return replace(
        arms[0],
        seeds=min(arm.seeds for arm in arms),
        draws=max(arm.draws for arm in arms),
        peak_memory_mb=max(arm.peak_memory_mb for arm in arms),
        paired_by_row=Difference.mean(differences) if len(differences) == len(arms) else None,
        **means,
    )
