"""Metrics from what a model said to each row, as lm-evaluation-harness defines them, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from flexora.scoring.results import ArmResult, Estimate, Metric, Results


@dataclass(frozen=True)
class RowScore:
    """What a model said to one row.

    Attributes:
        log_likelihoods: Summed log-likelihood of each choice, in nats.
        chars: Characters of each choice.
        answer: Index of the right choice.
        answer_tokens: Tokens of the right choice.
        generated: What the model wrote, where it was asked to write.
        matches: For each metric of generated text whether it is right.
    """

    log_likelihoods: list[float]
    chars: list[int]
    answer: int
    answer_tokens: int
    generated: str | None = None
    matches: Mapping[Metric, bool] = field(default_factory=dict)

    def prediction(self, metric: Metric) -> int:
        """The choice with the highest score; the first wins a tie, as in the harness.

        ``acc_norm`` divides the summed log-likelihood by the number of characters of the choice; others do not.
        """
        scores = self.log_likelihoods
        if metric == "acc_norm":
            scores = [score / chars for score, chars in zip(scores, self.chars, strict=True)]
        return max(range(len(scores)), key=scores.__getitem__)

    def value(self, metric: Metric) -> float:
        """1 for a right answer and 0 for a wrong one; for ``loss`` the nats per answer token."""
        if metric == "loss":
            return -self.log_likelihoods[self.answer] / self.answer_tokens
        if metric in self.matches:
            return float(self.matches[metric])
        return float(self.prediction(metric) == self.answer)


def values(rows: Sequence[RowScore], metric: Metric) -> Tensor:
    """The metric of each row, ``[rows]``, float64.

    The loss is a ratio of sums, nats over tokens: its rows are linearised around it (delta method), so that their mean
    is the loss, and their standard error its standard error.
    """
    if metric == "loss":
        nats = torch.tensor([-row.log_likelihoods[row.answer] for row in rows], dtype=torch.float64)
        tokens = torch.tensor([row.answer_tokens for row in rows], dtype=torch.float64)
        loss = nats.sum() / tokens.sum()
        return loss + (nats - loss * tokens) / tokens.mean()
    return torch.tensor([row.value(metric) for row in rows], dtype=torch.float64)


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


def calibration_error(rows: Sequence[RowScore]) -> float:
    """Expected calibration error of the predicted choice over 15 bins (Guo et al. 2017), as a share.

    The confidence is the softmax of the summed log-likelihoods, so the prediction is that of ``acc``.
    """
    confidence = [float(torch.tensor(row.log_likelihoods, dtype=torch.float64).softmax(0).max()) for row in rows]
    right = values(rows, "acc").long()
    return float(binary_calibration_error(torch.tensor(confidence), right, n_bins=15, norm="l1"))


def arm_result(
    name: str,
    rows: Sequence[RowScore],
    base: Sequence[RowScore] | None,
    metrics: Sequence[Metric],
    adapted_layers: int,
    parameters: int,
) -> ArmResult:
    """The figures of one arm.

    Args:
        name: Its name.
        rows: Its scores.
        base: Scores of the base model on the same rows, if they were taken; the arm itself where it is the base.
        metrics: What is measured.
        adapted_layers: Number of layers with an adapter.
        parameters: Parameters of the adapter.
    """
    over_base = None
    if base is not None and base is not rows:
        over_base = {m: mean_with_error(values(rows, m) - values(base, m)) for m in metrics}
    return ArmResult(
        name=name,
        adapted_layers=adapted_layers,
        trainable_parameters=parameters,
        metrics={metric: mean_with_error(values(rows, metric)) for metric in metrics},
        loss=mean_loss(rows),
        calibration_error=calibration_error(rows) if "acc" in metrics else None,
        over_base=over_base,
    )


def average(name: str, parts: Sequence[Results]) -> Results:
    """Several benchmarks as one: the plain mean of their primary metrics, as the field reports commonsense sets.

    Rows of different benchmarks are independent, so standard errors add in squares.

    Args:
        name: Name of the whole.
        parts: Results with the same arms.
    """

    def mean(estimates: Sequence[Estimate]) -> Estimate:
        error = math.sqrt(sum(estimate.stderr**2 for estimate in estimates)) / len(estimates)
        return Estimate(value=sum(estimate.value for estimate in estimates) / len(estimates), stderr=error)

    arms = []
    for same in zip(*(part.arms for part in parts), strict=True):
        own = [arm.metrics[part.primary_metric] for arm, part in zip(same, parts, strict=True)]
        gains = [arm.over_base[part.primary_metric] for arm, part in zip(same, parts, strict=True) if arm.over_base]
        loss = sum(arm.loss for arm in same) / len(same)
        over_base: dict[Metric, Estimate] | None = {"average": mean(gains)} if gains else None
        changed = {"metrics": {"average": mean(own)}, "loss": loss, "over_base": over_base, "calibration_error": None}
        arms.append(same[0].model_copy(update=changed))
    return parts[0].model_copy(
        update={
            "benchmark": name,
            "split": "reported",
            "rows": sum(part.rows for part in parts),
            "split_rows": sum(part.split_rows for part in parts),
            "primary_metric": "average",
            "arms": arms,
            "parts": list(parts),
        }
    )
