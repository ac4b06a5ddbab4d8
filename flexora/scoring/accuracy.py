"""Accuracy from choice log-likelihoods, as lm-evaluation-harness defines it, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from flexora.scoring.results import ArmResult, Estimate, Metric


@dataclass(frozen=True)
class RowScore:
    """What a model said to one question.

    Attributes:
        log_likelihoods: Summed log-likelihood of each choice, in nats.
        chars: Characters of each choice.
        answer: Index of the right choice.
        answer_tokens: Tokens of the right choice.
    """

    log_likelihoods: list[float]
    chars: list[int]
    answer: int
    answer_tokens: int

    def correct(self, metric: Metric) -> bool:
        """Whether the choice with the highest score is the right one; the first wins a tie, as in the harness.

        ``acc`` takes the summed log-likelihood, ``acc_norm`` divides it by the number of characters of the choice.
        """
        scores = self.log_likelihoods
        if metric == "acc_norm":
            scores = [score / chars for score, chars in zip(scores, self.chars, strict=True)]
        return max(range(len(scores)), key=scores.__getitem__) == self.answer


def hits(rows: Sequence[RowScore], metric: Metric) -> Tensor:
    """1.0 for each row answered rightly, else 0.0, ``[rows]``, float64."""
    return torch.tensor([row.correct(metric) for row in rows], dtype=torch.float64)


def mean_with_error(values: Tensor) -> Estimate:
    """Mean and standard error (sample standard deviation over the root of n) of ``[n]`` values.

    For differences of two models on the same rows this is the paired standard error.
    """
    error = float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return Estimate(value=float(values.mean()), stderr=error)


def mean_loss(rows: Sequence[RowScore]) -> float:
    """Negative log-likelihood of the right answers per token, in nats."""
    total = -sum(row.log_likelihoods[row.answer] for row in rows)
    return total / sum(row.answer_tokens for row in rows)


def arm_result(
    name: str, rows: Sequence[RowScore], base: Sequence[RowScore] | None, adapted_layers: int, parameters: int
) -> ArmResult:
    """The figures of one arm.

    Args:
        name: Its name.
        rows: Its scores.
        base: Scores of the base model on the same rows, if they were taken; the arm itself where it is the base.
        adapted_layers: Number of layers with an adapter.
        parameters: Parameters of the adapter.
    """
    metrics: tuple[Metric, ...] = get_args(Metric)
    compared = base is not None and base is not rows
    return ArmResult(
        name=name,
        adapted_layers=adapted_layers,
        trainable_parameters=parameters,
        metrics={metric: mean_with_error(hits(rows, metric)) for metric in metrics},
        loss=mean_loss(rows),
        over_base={m: mean_with_error(hits(rows, m) - hits(base or rows, m)) for m in metrics} if compared else None,
    )
