"""Accuracies and standard errors against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from flexora.scoring.accuracy import (
    RowScore,
    arm_result,
    average,
    calibration_error,
    mean_loss,
    mean_with_error,
    values,
)
from flexora.scoring.results import ArmResult, Estimate, Metric, Results

METRICS: tuple[Metric, ...] = ("acc", "acc_norm")


def row(log_likelihoods: list[float], answer: int, chars: list[int] | None = None, tokens: int = 2) -> RowScore:
    return RowScore(log_likelihoods, chars or [1] * len(log_likelihoods), answer, tokens)


#: Per character: -0.5 and -0.6 (longer wins), -1 and -0.8, a tie, and -0.3 and -0.25 of equal sums.
ROWS = [
    row([-5.0, -3.0], answer=0, chars=[10, 5]),
    row([-2.0, -4.0], answer=0, chars=[2, 5], tokens=3),
    row([-1.0, -1.0], answer=1),
    row([-3.0, -3.0], answer=1, chars=[10, 12]),
]


@pytest.mark.parametrize(("metric", "expected"), [("acc", [0.0, 1.0, 0.0, 0.0]), ("acc_norm", [1.0, 0.0, 0.0, 1.0])])
def test_right_and_wrong(metric: Metric, expected: list[float]) -> None:
    assert values(ROWS, metric).tolist() == expected


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_the_first_choice_wins_a_tie(metric: Metric) -> None:
    tied = [-2.0, -1.0, -1.0, -1.0]
    assert [row(tied, answer).value(metric) for answer in range(4)] == [0, 1, 0, 0]


def test_standard_error_is_the_sample_deviation_over_the_root_of_n() -> None:
    # 1 of 4: mean 1/4, squared deviations 9/16 + 3/16 = 3/4, over n - 1 = 3: variance 1/4, so 0.5 / 2.
    estimate = mean_with_error(values(ROWS, "acc"))
    assert estimate.value == pytest.approx(0.25, abs=1e-15)
    assert estimate.stderr == pytest.approx(0.25, abs=1e-15)
    # Shares p of n rows: lm-evaluation-harness's sqrt(p (1 - p) / (n - 1)).
    shares = torch.tensor([1.0] * 30 + [0.0] * 70, dtype=torch.float64)
    assert mean_with_error(shares).stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 99), abs=1e-15)


def test_one_row_has_no_spread() -> None:
    assert mean_with_error(torch.ones(1, dtype=torch.float64)).stderr == 0.0


def test_loss_is_per_token_of_the_right_answers() -> None:
    assert mean_loss(ROWS) == pytest.approx((5.0 + 2.0 + 1.0 + 3.0) / (2 + 3 + 2 + 2), abs=1e-15)


def test_difference_to_the_base_is_paired() -> None:
    base = [row([-1.0, -2.0], answer) for answer in (0, 0, 1, 1)]  # hits 1 1 0 0
    arm = [row([-1.0, -2.0], 0), row([-3.0, -2.0], 0), row([-3.0, -2.0], 1), row([-3.0, -2.0], 1)]  # hits 1 0 1 1
    result = arm_result("lora", arm, base, METRICS, adapted_layers=4, parameters=7)
    assert result.over_base is not None
    for metric in ("acc", "acc_norm"):
        # Differences 0 -1 1 1: mean 1/4, squared deviations 1/16 + 25/16 + 9/16 + 9/16 = 11/4, over 3, over 4.
        assert result.over_base[metric].value == pytest.approx(0.25, abs=1e-15)
        assert result.over_base[metric].stderr == pytest.approx(math.sqrt(11 / 48), abs=1e-15)
        assert result.metrics[metric].value == pytest.approx(0.75, abs=1e-15)
    assert (result.adapted_layers, result.trainable_parameters) == (4, 7)


def test_equal_models_differ_by_exactly_nothing() -> None:
    result = arm_result("lora", list(ROWS), ROWS, METRICS, adapted_layers=1, parameters=1)
    assert result.over_base is not None
    assert all((estimate.value, estimate.stderr) == (0.0, 0.0) for estimate in result.over_base.values())


@pytest.mark.parametrize("base", [None, ROWS], ids=["not scored", "the arm itself"])
def test_no_difference_without_a_base(base: list[RowScore] | None) -> None:
    assert arm_result("base", ROWS, base, METRICS, adapted_layers=0, parameters=0).over_base is None


def test_loss_as_a_metric_is_the_loss_of_the_table() -> None:
    """A ratio of sums: per-row values are linearised around it, with the delta method's standard error."""
    linear = values(ROWS, "loss")
    assert float(linear.mean()) == pytest.approx(mean_loss(ROWS), abs=1e-15)
    nats, tokens, loss = [5.0, 2.0, 1.0, 3.0], [2, 3, 2, 2], 11 / 9
    residuals = [(nat - loss * token) / 2.25 for nat, token in zip(nats, tokens, strict=True)]
    error = math.sqrt(sum(residual**2 for residual in residuals) / 3 / 4)
    assert mean_with_error(linear).stderr == pytest.approx(error, abs=1e-15)
    worse = [row([-6.0, -3.0], answer=0), *ROWS[1:]]
    result = arm_result("lora", worse, ROWS, ["loss"], adapted_layers=1, parameters=1)
    assert result.over_base is not None
    assert result.over_base["loss"].value == pytest.approx(1 / 9, abs=1e-14)
    assert result.metrics["loss"].value == pytest.approx(result.loss, abs=1e-14)
    assert result.calibration_error is None


def test_generated_answers_count_by_what_they_match() -> None:
    generated = RowScore([-3.0], [4], 0, 2, generated="4", matches={"exact_match": False, "flexible_match": True})
    assert values([generated], "exact_match").tolist() == [0.0]
    assert values([generated], "flexible_match").tolist() == [1.0]


def test_calibration_error_by_hand() -> None:
    # Confidences 0.8 (right), 0.8 (wrong) and 0.5 (right): bins of 1/15 hold {0.8, 0.8} and {0.5}.
    def sure(share: float, answer: int) -> RowScore:
        return row([math.log(share) - 7.0, math.log(1 - share) - 7.0], answer)

    expected = (2 * abs(0.8 - 0.5) + abs(0.5 - 1.0)) / 3
    assert calibration_error([sure(0.8, 0), sure(0.8, 1), sure(0.5, 0)]) == pytest.approx(expected, abs=1e-6)
    flat = [sure(0.8, 0)] * 8 + [sure(0.8, 1)] * 2
    assert calibration_error(flat) == pytest.approx(0.0, abs=1e-6)


def test_the_average_is_the_plain_mean_of_primary_metrics() -> None:
    def part(name: str, metric: Metric, base: float, tuned: float, error: float) -> Results:
        gain = {metric: Estimate(value=tuned - base, stderr=error)}
        arms = [
            ArmResult(
                name=arm,
                adapted_layers=0,
                trainable_parameters=0,
                metrics={metric: Estimate(value=value, stderr=error)},
                loss=value,
                calibration_error=0.5,
                over_base=over,
            )
            for arm, value, over in (("base", base, None), ("lora", tuned, gain))
        ]
        return Results(
            benchmark=name,
            split="test",
            rows=10,
            split_rows=20,
            model="m",
            precision="32-true",
            primary_metric=metric,
            arms=arms,
        )

    whole = average("Both", [part("A", "acc", 0.2, 0.4, 0.03), part("B", "acc_norm", 0.6, 0.7, 0.04)])
    assert (whole.benchmark, whole.rows, whole.split_rows, whole.primary_metric) == ("Both", 20, 40, "average")
    base, lora = whole.arms
    assert base.metrics["average"].value == pytest.approx(0.4)
    assert lora.metrics["average"].stderr == pytest.approx(0.025)  # sqrt(0.03^2 + 0.04^2) / 2
    assert base.over_base is None
    assert lora.over_base is not None
    assert lora.over_base["average"].value == pytest.approx(0.15)
    assert [found.benchmark for found in Results.model_validate_json(whole.model_dump_json()).parts] == ["A", "B"]
