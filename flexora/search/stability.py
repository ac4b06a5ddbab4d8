"""How sure a choice is: over the last outer steps, and over repeats with other seeds and other held-out rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations
from math import comb

from flexora.search.history import HistoryRow
from flexora.search.rules import SelectionRule


def choice_frequency(rows: Sequence[HistoryRow], rule: SelectionRule, parameters: Sequence[int]) -> list[float]:
    """Share of rows in which the rule chooses each unit."""
    choices = [set(rule(row.alpha, parameters)) for row in rows]
    return [sum(unit in chosen for chosen in choices) / len(rows) for unit in range(len(parameters))]


def mean_jaccard(choices: Sequence[Collection[int]]) -> float:
    """Mean over all pairs of choices of |intersection| / |union|."""
    overlaps = [len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in combinations(choices, 2)]
    return sum(overlaps) / len(overlaps)


def random_jaccard(sizes: Sequence[int], units: int) -> float:
    """What :func:`mean_jaccard` is on average where choices of these sizes are drawn at random.

    The overlap of two random subsets of a and b out of n units is hypergeometric:
    ``E[J] = sum_k C(a, k) C(n - a, b - k) / C(n, b) * k / (a + b - k)``.
    """

    def expected(a: int, b: int) -> float:
        overlaps = range(max(0, a + b - units), min(a, b) + 1)
        return sum(comb(a, k) * comb(units - a, b - k) / comb(units, b) * k / (a + b - k) for k in overlaps)

    pairs = [expected(a, b) for a, b in combinations(sizes, 2)]
    return sum(pairs) / len(pairs)
