"""Selection rules: what they choose, and that they never choose nothing."""

from __future__ import annotations

from typing import Any

import pytest

from flexora.errors import FlexoraError
from flexora.search.rules import Budget, Positive, SelectionRule, Threshold, TopK

ALPHA = [0.3, -0.2, 0.0, 0.9, 0.1]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Positive(), [0, 3, 4]),
        (Threshold(0.2), [0, 3]),
        (Threshold(5.0), [3]),
        (TopK(2), [0, 3]),
        (TopK(5), [0, 1, 2, 3, 4]),
        (Budget(250), [0, 3]),
        (Budget(10_000), [0, 1, 2, 3, 4]),
        (Budget(share=0.5), [0, 3]),
        (Budget(share=1.0), [0, 1, 2, 3, 4]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, SelectionRule) else "",
)
def test_rules(rule: SelectionRule, expected: list[int]) -> None:
    assert rule(ALPHA, [100] * 5) == expected


def test_a_budget_skips_what_is_too_large_for_the_rest() -> None:
    assert Budget(250)(ALPHA, [200, 1, 61, 150, 40]) == [1, 3, 4]


def test_ties_go_to_the_lower_layer() -> None:
    assert TopK(2)([0.0] * 4, [1] * 4) == [0, 1]


def test_no_rule_chooses_nothing() -> None:
    assert Positive()([0.0, 0.0, 0.0], [1] * 3) == [0]
    assert Positive()([-3.0, -1.0, -2.0], [1] * 3) == [1]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (TopK(6), "the model has 5"),
        (Budget(99), r"rule.parameters: 99 is too small; the smallest choice needs 100"),
        (Budget(share=0.1), r"rule.share: 0.1 is too small; the smallest choice needs 100"),
    ],
    ids=["k", "budget", "share"],
)
def test_rules_that_cannot_be_met(rule: SelectionRule, message: str) -> None:
    with pytest.raises(FlexoraError, match=message):
        rule(ALPHA, [100] * 5)


def test_top_k_of_nothing_is_refused() -> None:
    with pytest.raises(FlexoraError, match="choose at least 1"):
        TopK(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either parameters or share"),
        ({"parameters": 5, "share": 0.5}, "either parameters or share"),
        ({"share": 0.0}, "share: 0.0 must be above 0 and at most 1"),
        ({"share": 1.1}, "share: 1.1 must be above 0 and at most 1"),
    ],
)
def test_a_budget_is_a_number_or_a_share(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FlexoraError, match=message):
        Budget(**settings)


def test_what_is_not_set_is_not_described() -> None:
    assert Budget(5).describe() == {"name": "Budget", "parameters": 5}
    assert Budget(share=0.5).describe() == {"name": "Budget", "share": 0.5}
