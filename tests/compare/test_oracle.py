"""Verdicts on selectors whose place is known, and the benchmark that tries every subset, on a tiny model."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from statistics import mean

import pytest

from flexora.compare.oracle import group_scores, groups, subsets, verdict
from flexora.errors import FlexoraError
from tests.benchmarks import oracle
from tests.benchmarks.third_part import read

RESULTS = Path(oracle.__file__).with_name("oracle.csv")
README = Path(__file__).parents[2] / "README.md"

#: What each group takes off the loss.
GAINS = [0.1, 0.4, 0.2, 0.3]


def additive_losses(gains: list[float]) -> dict[tuple[int, ...], float]:
    """Losses for which the right scores are the gains."""
    return {subset: 2.0 - sum(gains[group] for group in subset) for subset in subsets(len(gains))}


def test_groups_are_contiguous_and_as_equal_as_can_be() -> None:
    assert groups(30, 5) == [list(range(start, start + 6)) for start in range(0, 30, 6)]
    assert groups(7, 3) == [[0, 1], [2, 3], [4, 5, 6]]
    assert [len(group) for group in groups(28, 5)] == [5, 6, 5, 6, 6]
    for m in (0, 1, 5):
        with pytest.raises(FlexoraError, match=f"4 layers cannot make {m} groups; choose 2 to 4"):
            groups(4, m)


def test_subsets_are_all_of_them() -> None:
    found = subsets(5)
    assert len(set(found)) == 2**5 - 1
    assert found == sorted(found, key=lambda subset: (len(subset), subset))


def test_a_group_is_scored_by_the_mean_of_its_layers() -> None:
    assert group_scores([1.0, 3.0, 0.0, 1.0, 2.0], [[0, 1], [2, 3, 4]]) == [2.0, 1.0]


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_the_right_order_regrets_nothing(scale: float) -> None:
    found = verdict(additive_losses(GAINS), [scale * gain for gain in GAINS])
    assert [at.size for at in found.sizes] == [1, 2, 3]
    assert [at.regret for at in found.sizes] == [0.0] * 3
    assert [at.correlation for at in found.sizes] == pytest.approx([1.0] * 3)
    assert (found.regret, found.correlation) == pytest.approx((0.0, 1.0))


def test_the_reverse_order_regrets_all_and_a_random_subset_what_it_has_on_average() -> None:
    losses = additive_losses(GAINS)
    found = verdict(losses, [-gain for gain in GAINS])
    for at in found.sizes:
        same = [losses[subset] for subset in combinations(range(4), at.size)]
        assert at.regret == pytest.approx(max(same) - min(same))
        assert at.random_regret == pytest.approx(mean(same) - min(same))
        assert at.correlation == pytest.approx(-1.0)
    assert found.regret == pytest.approx((0.3 + 0.4 + 0.3) / (0.15 + 0.2 + 0.15))
    chance = [verdict(losses, scores).regret for scores in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1])]
    assert mean(chance) == pytest.approx(1.0)  # each group is as often in as the others


def test_equal_scores_say_nothing() -> None:
    found = verdict(additive_losses(GAINS), [0.5] * 4)
    assert [at.correlation for at in found.sizes] == [0.0] * 3
    assert found.sizes[0].regret == pytest.approx(GAINS[1] - GAINS[0])  # the first group comes first
    assert verdict(dict.fromkeys(subsets(3), 1.0), [1.0, 2.0, 3.0]).regret == 0.0


def test_a_subset_that_was_not_tried_is_told() -> None:
    losses = additive_losses(GAINS)
    del losses[0, 2]
    with pytest.raises(FlexoraError, match=r"1 subsets have no loss, e\.g\. \(0, 2\)"):
        verdict(losses, GAINS)


def test_the_benchmark_goes_on_where_it_stopped(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "oracle.csv"
    command = ["--file", str(file), "--model", str(tiny_models["llama"]), "--source", str(benchmark_folder)]
    sizes = {"groups": 2, "steps": 2, "batch-size": 4, "third-rows": 8, "validation-rows": 8, "gradients": 14}
    command += [f"--{name}={size}" for name, size in sizes.items()]
    oracle.main([*command, "--rows", "6"])
    first = read(file)
    assert len(first) == 6
    oracle.main(command)
    rows = read(file)
    assert rows[:6] == first
    selectors = {row["name"]: row["scores"].split() for row in rows if row["scores"]}
    assert list(selectors) == [*oracle.PROBES, *oracle.SEARCHES]
    assert {len(scores) for scores in selectors.values()} == {4}
    losses = {row["name"]: float(row["loss"]) for row in rows if row["loss"]}
    assert sorted(losses) == ["0", "0 1", "1"]
    assert len(set(losses.values())) == 3
    oracle.main(command)
    assert read(file) == rows
    table = capsys.readouterr().out
    assert all(name in table for name in (*selectors, "last layers", "random groups", "best groups"))


def test_the_readme_says_what_the_rows_say() -> None:
    rows = read(RESULTS)
    assert len({row["settings"] for row in rows}) == 1
    layers = len(next(row["scores"] for row in rows if row["scores"]).split())
    _, found = oracle.judged(rows, groups(layers, 5))
    overlaps, by_chance = oracle.overlaps(rows)
    wanted = []
    for name, verdicts in found.items():
        correlation, relative = (mean(getattr(one, what) for one in verdicts) for what in ("correlation", "regret"))
        overlap = f"{overlaps[name]:.2f}" if name in overlaps else ""
        signed = f"{correlation:+.2f}".replace("-", "\N{MINUS SIGN}")
        wanted.append([name, str(len(verdicts)), overlap, signed, f"{relative:.2f}"])
    said = README.read_text(encoding="utf-8").split("**How far from the best choice?**")[1].split("\n\n")
    assert f"(of random halves {by_chance:.2f})" in " ".join(said[0].split())
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said[1].splitlines()[2:]]
    assert sorted(table) == sorted(wanted)
