"""Gate bars and the accuracy table in terminals of all kinds, and the same table as Markdown."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console, RenderableType

from flexora.report.cells import results_cells
from flexora.report.terminal import gate_bars, results_markdown, results_table
from flexora.scoring.results import Estimate, Results
from flexora.search.selection import Selection
from flexora.search.units import flatten

TERMINAL = 80


def printed(renderable: RenderableType, width: int = TERMINAL, encoding: str = "utf-8") -> list[str]:
    """The lines of a renderable in a terminal of this width, without colour."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=width, color_system=None).print(renderable)
    file.seek(0)
    return file.read().splitlines()


def test_gate_bars_mark_exactly_the_chosen(selection: Selection) -> None:
    """Tick and full bar on the chosen layers only; lengths in proportion to the gates."""
    gates = flatten(selection.gates or [])
    lines = printed(gate_bars(selection))[1:]
    assert [int(line.split()[0]) for line in lines] == list(range(6))
    assert [int(line.split()[0]) for line in lines if "✓" in line] == selection.layers
    assert [int(line.split()[0]) for line in lines if "█" in line] == selection.layers
    assert all(f"{gate:.3f}" in line for gate, line in zip(gates, lines, strict=True))
    lengths = [line.count("█") + line.count("░") for line in lines]
    assert lengths == [round(max(lengths) * gate / max(gates)) for gate in gates]


@pytest.mark.parametrize("width", [40, TERMINAL, 200])
def test_gate_bars_keep_to_their_lines(selection: Selection, width: int) -> None:
    """One line per layer in every terminal."""
    lines = printed(gate_bars(selection), width)
    assert len(lines) == 1 + 6
    assert max(map(len, lines)) <= width
    assert sum(line.endswith("✓") for line in lines) == len(selection.layers)


def test_gate_bars_without_unicode_and_without_gates(selection: Selection) -> None:
    """Plain ASCII terminals and selections typed by hand."""
    lines = printed(gate_bars(selection), encoding="ascii")[1:]
    assert [int(line.split()[0]) for line in lines if "*" in line] == selection.layers
    by_hand = selection.model_copy(update={"gates": None})
    assert [line.split() for line in printed(gate_bars(by_hand))[1:]] == [
        [str(layer), "✓"] if layer in selection.layers else [str(layer)] for layer in range(6)
    ]


def test_markdown_holds_the_cells_of_the_terminal(results: Results) -> None:
    """Markdown and terminal show the same cells."""
    markdown = results_markdown(results).splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown if line.startswith("|")]
    header, rows = results_cells(results)
    assert table == [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    terminal = printed(results_table(results))
    assert "ARC-Easy, test split, 500 of 2,376 rows" in terminal[0]
    for row in rows:
        assert any(re.split(r"\s+(?!±)(?<!±\s)", line.strip()) == row for line in terminal), row


def test_results_table_fits_and_takes_no_markup(results: Results) -> None:
    """80 columns suffice; names are neither rich markup nor Markdown columns."""
    results.benchmark = "[red]Bench[/red]"
    results.arms[1].name = "[bold]runs/a|b"
    lines = printed(results_table(results))
    assert max(map(len, lines)) <= TERMINAL
    assert "[red]Bench[/red]" in lines[0]
    assert any("[bold]" in line for line in lines)
    assert r"\[bold\]runs/a\|b" in results_markdown(results)


@pytest.mark.parametrize(
    ("width", "lacks"), [(120, []), (80, ["calibration"]), (60, ["calibration", "loss", "parameters"])]
)
def test_a_narrow_terminal_goes_without_columns_and_not_without_names(
    results: Results, width: int, lacks: list[str]
) -> None:
    for place, arm in enumerate(results.arms):
        arm.calibration_error = 0.25
        arm.trainable_parameters = 2_442_240 * place
    *table, _, _ = printed(results_table(results), width)
    assert max(map(len, table)) <= width
    assert not any("…" in line for line in table)
    for arm in results.arms:
        assert any(line.split()[:1] == [arm.name] for line in table), arm.name
    head = " ".join(table[1:5])
    assert [name for name in ("calibration", "loss", "parameters") if name not in head] == lacks


def test_a_narrow_terminal_keeps_what_is_reported(results: Results) -> None:
    """Of own instructions that is the loss, elsewhere one of the first columns to go."""
    results.primary_metric = "loss"
    for arm in results.arms:
        arm.name, arm.metrics, arm.over_base = f"runs/{arm.name}", {"loss": Estimate(value=arm.loss, stderr=0.1)}, None
    head = " ".join(printed(results_table(results), 40)[1:5])
    assert head.count("loss") == 2  # and its difference to the base model's
    assert "parameters" not in head


def test_importing_the_report_is_cheap() -> None:
    """Neither package nor terminal output imports matplotlib, jinja2 or torch."""
    code = "import flexora.report.terminal, sys; assert not {'matplotlib', 'jinja2', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
