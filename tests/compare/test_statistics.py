"""Bootstrap intervals against every possible resample and closed forms; means by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from flexora.compare import paired
from flexora.compare.paired import Mean, crossed_bootstrap, paired_difference
from flexora.compare.rows import Outcome, ResultRow
from flexora.compare.statistics import layers_of, study_statistics
from flexora.errors import FlexoraError
from tests.compare.invented import outcome, result, scored_by_loss, study

RESAMPLES = 200_000


def generator() -> np.random.Generator:
    return np.random.default_rng(5)


def test_bootstrap_draws_every_resample_as_often_as_it_is_likely() -> None:
    """Two seeds, three rows: 2**2 * 3**3 equally likely resamples, each of them made; the seeds are moved apart."""
    d = np.array([[1.0, 0.0, -1.0], [1.0, 1.0, 0.5]])
    moved = d + (math.sqrt(2) - 1) * (d.mean(axis=1, keepdims=True) - d.mean())
    every = [
        moved[np.ix_(seeds, rows)].mean()
        for seeds in itertools.product(range(2), repeat=2)
        for rows in itertools.product(range(3), repeat=3)
    ]
    values, counts = np.unique(np.round(every, 9), return_counts=True)
    made, times = np.unique(np.round(crossed_bootstrap(d, RESAMPLES, generator()), 9), return_counts=True)
    np.testing.assert_array_equal(made, values)
    np.testing.assert_allclose(times / RESAMPLES, counts / len(every), atol=5 * 0.5 / math.sqrt(RESAMPLES))


@pytest.mark.parametrize("chunks", [1, 7])
@pytest.mark.parametrize("seeds", [1, 4])
def test_bootstrap_has_the_variance_of_its_closed_form(
    seeds: int, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds, whose variance is the unbiased one, rows and cells each give their part; one seed gives none."""
    d = generator().normal(size=(seeds, 50)) + generator().normal(size=(seeds, 1)) + generator().normal(size=50)
    monkeypatch.setattr(paired, "_CELLS", 50 * 20_000 // chunks)
    samples = crossed_bootstrap(d, 20_000, generator())
    cells = (d - d.mean(axis=1, keepdims=True)).var(axis=0).mean()
    of_seeds = d.mean(axis=1).var(ddof=1) / seeds if seeds > 1 else 0.0
    expected = of_seeds + d.mean(axis=0).var() / 50 + cells / (seeds * 50)
    assert samples.shape == (20_000,)
    assert samples.var() == pytest.approx(expected, rel=0.05)
    assert samples.mean() == pytest.approx(d.mean(), abs=4 * math.sqrt(expected / 20_000))


def test_interval_of_one_seed_is_that_of_many_rows() -> None:
    """2,000 rows are many enough for the normal distribution."""
    right, wrong = generator().random((2, 2000)) < np.array([[0.65], [0.6]])
    difference = paired_difference({0: right.astype(float)}, {0: wrong.astype(float)}, "a")
    assert difference is not None
    d = right.astype(float) - wrong
    reach = 1.96 * d.std() / math.sqrt(2000)
    assert (difference.value, difference.seeds) == (pytest.approx(d.mean()), 1)
    assert difference.low == pytest.approx(d.mean() - reach, abs=0.05 * reach)
    assert difference.high == pytest.approx(d.mean() + reach, abs=0.05 * reach)


def test_seeds_widen_the_interval() -> None:
    """Rows alike in all seeds, seeds that differ: an interval over rows alone would be half as wide."""
    rows = generator().random(2000)
    arm = {seed: (rows < share).astype(float) for seed, share in enumerate((0.5, 0.6, 0.7))}
    reference = {seed: (rows < 0.6).astype(float) for seed in arm}
    several = paired_difference(arm, reference, "a")
    one = paired_difference({2: arm[2]}, reference, "a")
    assert several is not None
    assert one is not None
    assert (several.seeds, one.seeds) == (3, 1)
    assert several.low < -0.05 < 0.05 < several.high
    assert one.high - one.low < 0.5 * (several.high - several.low)


def test_base_is_paired_with_every_seed_and_arms_with_the_seeds_that_both_have() -> None:
    right = {seed: np.array([1.0, seed % 2, 0.0]) for seed in range(3)}
    base = {None: np.array([0.0, 1.0, 0.0])}
    for one, other, sign in ((right, base, 1), (base, right, -1)):
        found = paired_difference(one, other, "a")
        assert found is not None
        assert (found.seeds, found.value) == (3, pytest.approx(sign * (1 / 3 - 2 / 9)))
    some = paired_difference({1: right[1], 7: right[0]}, right, "a")
    assert some is not None
    assert (some.seeds, some.value) == (1, 0.0)
    assert paired_difference({7: right[0]}, right, "a") is None


def test_the_interval_of_an_arm_does_not_depend_on_the_other_arms() -> None:
    results, outcomes = study(arms=3, benchmarks=1)
    whole = study_statistics(results, outcomes, "lora")
    some = study_statistics([row for row in results if row.arm != "flexora"], outcomes, "lora")
    assert whole.benchmarks[0].arms["random"].paired_by_row == some.benchmarks[0].arms["random"].paired_by_row


def test_means_by_hand() -> None:
    """Draws first, then seeds; an arm without seeds has no standard error."""
    rows = [
        result(
            "lora", seed=0, right=5, loss=2.0, train_loss=1.5, last_validation_loss=2.5, parameters=400, layers="0-3"
        ),
        result(
            "lora", seed=1, right=7, loss=2.2, train_loss=1.7, last_validation_loss=2.3, parameters=400, layers="0-3"
        ),
        result("random", seed=0, draw=0, right=4, loss=2.4, parameters=100, layers="1"),
        result("random", seed=0, draw=1, right=6, loss=2.2, parameters=300, layers="0-2"),
        result("random", seed=1, draw=0, right=8, loss=2.3, parameters=200, layers="1, 3"),
        result("base", seed=None, right=3, loss=4.0, parameters=0, layers=None),
    ]
    found = study_statistics(rows, [outcome(row) for row in rows], "lora", ["base", "lora", "random"])
    (benchmark,) = found.benchmarks
    assert list(benchmark.arms) == ["base", "lora", "random"]
    lora, drawn, base = (benchmark.arms[name] for name in ("lora", "random", "base"))
    assert lora.score == (pytest.approx(0.6), pytest.approx(0.1))
    assert lora.gap == (pytest.approx(0.8), pytest.approx(0.2))
    assert (lora.difference, lora.paired_by_row, lora.paired_by_seed) == (None, None, None)
    assert (drawn.seeds, drawn.draws, drawn.parameters) == (2, 2, 200)
    assert drawn.score == (pytest.approx(0.65), pytest.approx(0.15))
    assert drawn.train_loss is None
    assert drawn.paired_by_row is not None
    assert drawn.difference is drawn.paired_by_row
    assert drawn.paired_by_row.value == pytest.approx(0.05)
    assert drawn.paired_by_seed == (pytest.approx(0.05), pytest.approx(0.05))
    assert benchmark.chosen["random"] == {0: 1 / 3, 1: 1.0, 2: 1 / 3, 3: 1 / 3}
    assert (base.seeds, base.score) == (0, (pytest.approx(0.3), None))
    assert base.paired_by_row is not None
    assert (base.paired_by_row.seeds, base.paired_by_row.value) == (2, pytest.approx(-0.3))
    assert base.paired_by_seed == (pytest.approx(-0.3), pytest.approx(0.1))


def test_without_right_and_wrong_rows_differences_are_paired_by_seed() -> None:
    """Of a loss, or of a metric without outcomes; the base goes with each seed, one seed has no standard error."""
    rows = [result("lora", seed, right=5 + seed, loss=2.0 + seed / 10) for seed in (0, 1)]
    rows += [result("flexora", seed, right=6 + 2 * seed, loss=1.7 + seed / 5) for seed in (0, 1)]
    rows += [result("once", 1, right=6, loss=2.5), result("base", None, right=3, loss=4.0)]
    scores = study_statistics(rows, [], "lora").means
    losses = study_statistics(list(map(scored_by_loss, rows)), [outcome(row) for row in rows], "lora").means
    for arm, points, nats in (("flexora", (0.15, 0.05), (-0.25, 0.05)), ("base", (-0.25, 0.05), (1.95, 0.05))):
        assert scores[arm].difference == pytest.approx(points)
        assert losses[arm].difference == pytest.approx(nats)
    assert scores["once"].difference == (pytest.approx(0.0), None)
    assert losses["once"].difference == (pytest.approx(0.4), None)
    assert losses["lora"].difference is None


def test_losses_and_accuracies_are_not_averaged() -> None:
    """Losses are with losses; what does not depend on the metric is still known of the arms that are complete."""
    results, outcomes = study(arms=2, benchmarks=2)
    losses = [scored_by_loss(row, f"own {row.benchmark}") for row in results]
    accuracies, lost, both = (study_statistics(rows, outcomes, "lora") for rows in (results, losses, results + losses))
    assert [found.metric for found in (accuracies, lost, both)] == ["score", "loss", None]
    assert [found.of("own Bench0").metric for found in (lost, both)] == ["loss", "loss"]
    assert (both.means, both.complete) == ({}, ["base", "lora", "flexora"])
    own = [part.arms["flexora"].score.value for part in lost.benchmarks]
    assert lost.means["flexora"].score.value == pytest.approx(np.mean(own))
    by_seed = [part.arms["flexora"].difference for part in lost.benchmarks]
    assert lost.means["flexora"].difference == Mean.over([mean for mean in by_seed if isinstance(mean, Mean)])


def test_means_over_benchmarks() -> None:
    """Benchmarks count alike, their intervals shrink as independent ones do; an arm that lacks one is left out."""
    results, outcomes = study(arms=3, benchmarks=4, rows=1000)
    lacking = [row for row in results if (row.arm, row.benchmark) != ("random", "Bench2")]
    found = study_statistics(lacking, outcomes, "lora")
    assert "random" not in found.means
    arms = [benchmark.arms["flexora"] for benchmark in found.benchmarks]
    mean = found.means["flexora"]
    assert mean.score.value == pytest.approx(np.mean([arm.score.value for arm in arms]))
    assert mean.score.stderr == pytest.approx(math.hypot(*(arm.score.stderr or 0.0 for arm in arms)) / 4)
    differences = [arm.paired_by_row for arm in arms if arm.paired_by_row]
    assert len(differences) == 4
    assert mean.paired_by_row is not None
    assert mean.paired_by_row.value == pytest.approx(np.mean([difference.value for difference in differences]))
    spread = math.hypot(*(difference.samples.std() for difference in differences)) / 4
    assert mean.paired_by_row.samples.std() == pytest.approx(spread, rel=0.05)


def test_layers_of_whole_layers_and_of_projections() -> None:
    assert layers_of("0, 3, 5-7") == {0, 3, 5, 6, 7}
    assert layers_of("dense_h_to_4h 2; v_proj 4-5") == {2, 4, 5}
    assert layers_of("") == set()


def _other_rows(results: list[ResultRow], outcomes: list[Outcome]) -> None:
    results[0] = results[0].model_copy(update={"rows": 7})


def _twice(results: list[ResultRow], outcomes: list[Outcome]) -> None:
    results.append(results[0])


def _lost(results: list[ResultRow], outcomes: list[Outcome]) -> None:
    outcomes.pop(0)


def _other_score(results: list[ResultRow], outcomes: list[Outcome]) -> None:
    results[0] = results[0].model_copy(update={"score": results[0].score + 0.1})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_other_rows, "score all arms on the same rows"),
        (_twice, "are there twice"),
        (_lost, "outcomes.csv nothing"),
        (_other_score, "delete the trial's lines"),
    ],
)
def test_files_that_disagree_are_told(spoil: Callable[[list[ResultRow], list[Outcome]], None], message: str) -> None:
    results, outcomes = study(arms=2, benchmarks=1)
    spoil(results, outcomes)
    with pytest.raises(FlexoraError, match=message):
        study_statistics(results, outcomes, "lora")
