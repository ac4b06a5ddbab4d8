"""What alpha has entries for, and how sure a choice among them is."""

from __future__ import annotations

from itertools import combinations

import pytest

from flexora.search.history import HistoryRow, averaged_alpha, last_of_each_repeat
from flexora.search.rules import Positive
from flexora.search.stability import choice_frequency, mean_jaccard, random_jaccard
from flexora.search.units import Unit, Units, flatten

LAYERWISE, MODULEWISE = Units(3), Units(3, ("q_proj", "v_proj"))


def test_layers_and_projections_of_layers() -> None:
    assert (LAYERWISE.shape, len(LAYERWISE)) == ((3,), 3)
    assert (MODULEWISE.shape, len(MODULEWISE)) == ((3, 2), 6)
    assert [str(unit) for unit in LAYERWISE] == ["0", "1", "2"]
    assert [str(unit) for unit in MODULEWISE][:3] == ["0.q_proj", "0.v_proj", "1.q_proj"]
    for units in (LAYERWISE, MODULEWISE):
        for place, unit in enumerate(units):
            assert units.index(unit.layer, unit.projection or "v_proj") == place
    assert list(MODULEWISE)[5] == Unit(2, "v_proj")


def test_targets_of_a_choice() -> None:
    assert LAYERWISE.targets([0, 2], ["q_proj", "v_proj"]) == {0: ["q_proj", "v_proj"], 2: ["q_proj", "v_proj"]}
    assert MODULEWISE.targets([1, 4, 5], ["q_proj", "v_proj"]) == {0: ["v_proj"], 2: ["q_proj", "v_proj"]}


@pytest.mark.parametrize("units", [LAYERWISE, MODULEWISE])
def test_fold_and_flatten(units: Units) -> None:
    values = [float(place) for place in range(len(units))]
    assert len(units.fold(values)) == 3
    assert flatten(units.fold(values)) == values


def test_frequency_and_average_over_the_last_steps_of_every_repeat() -> None:
    alphas = {1: [[9.0, 9.0], [1.0, -1.0], [1.0, 1.0]], 2: [[9.0, 9.0], [-1.0, -1.0], [3.0, -3.0]]}
    rows = [HistoryRow(0, repeat, 0.0, 0.0, 0.0, alpha) for repeat, path in alphas.items() for alpha in path]
    last = [row for repeat in last_of_each_repeat(rows, 2) for row in repeat]
    assert averaged_alpha(last) == [1.0, -1.0]
    # In the third row no alpha is positive, and the first of the largest is taken.
    assert choice_frequency(last, Positive(), [1, 1]) == [1.0, 0.25]


def test_jaccard_of_choices() -> None:
    assert mean_jaccard([[0, 1], [0, 1], [1, 2]]) == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)


@pytest.mark.parametrize(("a", "b", "units"), [(2, 3, 6), (5, 4, 6), (1, 1, 4)])
def test_random_jaccard_is_the_mean_over_all_choices(a: int, b: int, units: int) -> None:
    fixed = set(range(a))
    overlaps = [len(fixed & set(other)) / len(fixed | set(other)) for other in combinations(range(units), b)]
    assert random_jaccard([a, b], units) == pytest.approx(sum(overlaps) / len(overlaps))
