"""A study's tables in terminals and as Markdown."""

from __future__ import annotations

import numpy as np
import pytest

from flexora.compare.paired import Difference, Mean
from flexora.compare.rows import ResultRow
from flexora.compare.statistics import StudyStatistics, study_statistics
from flexora.compare.table import choice_table, compact_markdown, cost_table, signed, study_markdown, study_tables
from flexora.report.cells import NONE
from tests.compare.invented import outcome, result, scored_by_loss, study
from tests.report.test_terminal import printed


@pytest.fixture(scope="module")
def statistics() -> StudyStatistics:
    """All arms on three benchmarks."""
    return study_statistics(*study(), "lora")


def of_rows(*rows: ResultRow) -> StudyStatistics:
    return study_statistics(rows, [outcome(row) for row in rows], "lora")


def plain(cell: str) -> str:
    """A cell with hyphens for its minus signs and dashes."""
    return cell.replace("\N{MINUS SIGN}", "-").replace(NONE, "-")


@pytest.mark.parametrize("width", [80, 140])
def test_tables_fit_the_terminal(statistics: StudyStatistics, width: int) -> None:
    """Each arm keeps its line with its figures whole, the mean over the benchmarks comes first."""
    tables = study_tables(statistics)
    assert [table.title.split(",")[0] for table in tables] == ["Means over Bench0", "Bench0", "Bench1", "Bench2"]
    for table in tables:
        lines = printed(table, width)
        assert max(map(len, lines)) <= width
        for row in table.cells[1]:
            (line,) = (line for line in lines if line.startswith(f" {row[0]} "))
            assert all(cell in line for cell in (row if width == 140 else [row[0], *row[2:6]]))


def test_cells_by_hand() -> None:
    """Whole and mean counts, shares, signed points, dashes where nothing is known, a star where only rows are drawn."""
    found = of_rows(
        result("base", None, right=200, rows=1000, layers=None, adapted_layers=0, parameters=0, finetune_seconds=0.0),
        result("lora", 0, right=600, rows=1000, train_loss=1.5, last_validation_loss=1.25, parameters=1234),
        result("half", 0, right=601, rows=1000, adapted_layers=3, select_seconds=30.0, tune_seconds=90.0, loss=2.2),
        result("half", 1, right=605, rows=1000, adapted_layers=2),
    )
    (table,) = study_tables(found)
    base, lora, half = ([plain(cell) for cell in row] for row in table.cells[1])
    assert base[:5] == ["base", "-", "0", "0", "0.200"]
    assert base[5].startswith("-40.0 [-4")
    assert lora == ["lora", "1", "4", "1,234", "0.600", "-", "2.000", "1.500", "1.250", "-0.250"]
    assert half[1:5] == ["2", "2.5", "400", "0.603 ± 0.002"]
    assert half[5] == "+0.1 [+0.0, +0.3]*"
    assert half[6:] == ["2.100, +0.200", "-", "-", "-"]
    assert "* one seed: over rows alone" in table.note
    assert "over 1-2 seeds" not in table.note
    assert "over 2 seeds" in table.note
    assert cost_table(found).cells[1][2] == ["half", "0.2", "1.0", "1.5", "1,000"]
    assert "once for a benchmark" in cost_table(found).note


def test_a_bound_below_zero_is_not_shown_as_zero() -> None:
    difference = Difference(0.0125, -0.0002, 0.0252, 2, np.zeros(1))
    assert plain(signed(difference, "acc")) == "+1.2 [-0.0, +2.5]"
    assert plain(signed(Mean(-1e-17, 0.0), "acc")) == "+0.0 ± 0.0"


def test_agreement_of_choices() -> None:
    """Over pairs of seeds, beside the expectation for random pairs out of 4: (1 + 4 / 3 + 0) / 6."""
    layers = {0: "0, 1", 1: "1, 2", 2: "0-1"}
    rows = [result("flexora", seed).model_copy(update={"layers": layers[seed]}) for seed in layers]
    rows += [result("lora", seed).model_copy(update={"layers": "0-3"}) for seed in layers]
    rows += [result("once", 0).model_copy(update={"layers": "3"})]
    header, cells = choice_table(of_rows(*rows), 4).cells
    assert header == ["arm", rows[0].benchmark]
    assert cells == [["flexora", f"{(1 / 3 + 1 + 1 / 3) / 3:.2f} (0.39)"]]


def test_losses_are_told_in_nats(statistics: StudyStatistics) -> None:
    """In their own column alone, with differences paired by seed; beside accuracies without a mean, but with costs."""
    rows = [result("lora", seed, loss=2.0) for seed in range(2)]
    rows += [result("flexora", seed, loss=1.9 + seed / 10) for seed in range(2)]
    rows = [scored_by_loss(row) for row in [*rows, result("once", 0, loss=2.5)]]
    (table,) = study_tables(study_statistics(rows, [], "lora"))
    header, (lora, flexora, once) = table.cells
    assert header[4:] == ["loss", "nats over lora", "train loss", "validation loss", "gap"]
    assert [plain(cell) for cell in flexora[4:6]] == ["1.950 ± 0.050", "-0.050 ± 0.050"]
    assert (lora[5], once[5]) == (NONE, "+0.500")
    assert "signed: nats over lora, paired by seed" in table.note
    assert "the lower the better" in table.note
    assert "percentage points" not in table.note
    results, outcomes = study()
    both = study_statistics(
        [*results, *map(scored_by_loss, (r for r in results if r.benchmark == "Bench0"))], outcomes, "lora"
    )
    assert [table.title.split(",")[0] for table in study_tables(both)] == ["Bench0", "Bench1", "Bench2", "own"]
    assert [row[0] for row in cost_table(both).cells[1]] == list(statistics.means)
    head, *_, last = compact_markdown(both).splitlines()
    assert "mean" not in head
    assert "signed without brackets: nats over lora, paired by seed" in last


def test_markdown_holds_the_same_cells(statistics: StudyStatistics) -> None:
    text = study_markdown(statistics)
    assert text == study_markdown(study_statistics(*study(), "lora"))
    for table in study_tables(statistics):
        assert f"{table.title}:\n" in text
        for row in table.cells[1]:
            assert f"| {' | '.join(row)} |" in text
    assert "* one seed" not in text


def test_compact_table_has_a_line_for_each_arm(statistics: StudyStatistics) -> None:
    """Scores and differences on each benchmark and in the mean; an arm that lacks a benchmark has no mean."""
    lines = compact_markdown(statistics).splitlines()
    tables = study_tables(statistics)
    for place, arm in enumerate(statistics.means):
        cells = [cell.strip() for cell in lines[2 + place].strip("|").split("|")]
        assert cells[0] == arm
        own = [table.cells[1][place][4:6] for table in [*tables[1:], tables[0]]]
        loss = tables[0].cells[1][place][6].replace(", ", "<br>")
        assert cells[3:] == [*(score if arm == "lora" else f"{score}<br>{points}" for score, points in own), loss]
    results, outcomes = study(arms=2, benchmarks=2)
    lacking = [row for row in results if (row.arm, row.benchmark) != ("flexora", "Bench1")]
    *_, flexora = (
        line for line in compact_markdown(study_statistics(lacking, outcomes, "lora")).splitlines() if "flexora" in line
    )
    assert plain(flexora).endswith("| - | - | - |")
