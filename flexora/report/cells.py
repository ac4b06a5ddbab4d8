"""The strings of every table, made once for terminal, Markdown and HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flexora.scoring.results import ArmResult, Estimate, Metric, Results
from flexora.search.selection import Selection
from flexora.search.units import flatten

NONE = "\N{EN DASH}"

Cells = tuple[list[str], list[list[str]]]

#: Headings of metrics that are not the share of right choices.
_HEADINGS: dict[Metric, str] = {
    "loss": "Loss",
    "average": "Average accuracy",
    "exact_match": "Exact match",
    "flexible_match": "Flexible match",
}


def heading(results: Results) -> str:
    """What the results are of, by their primary metric."""
    return _HEADINGS.get(results.primary_metric, "Accuracy")


def estimate(value: Estimate | None, sign: bool = False) -> str:
    """``0.612 ± 0.022``, with ``sign`` ``+0.122 ± 0.019``; a dash for None."""
    if value is None:
        return NONE
    shown = round(value.value, 3) + 0.0  # + 0.0 turns a rounded -0.0 into 0.0
    text = f"{shown:+.3f}" if sign else f"{shown:.3f}"
    return f"{text} ± {value.stderr:.3f}".replace("-", "\N{MINUS SIGN}")


def rows_scored(results: Results) -> str:
    """``500 of 2,376``, or ``all 2,376`` where the whole split was scored."""
    if results.rows < results.split_rows:
        return f"{results.rows:,} of {results.split_rows:,}"
    return f"all {results.rows:,}"


def results_title(results: Results) -> str:
    """Benchmark, split and rows, in one line."""
    return f"{results.benchmark}, {results.split} split, {rows_scored(results)} rows"


def results_cells(results: Results) -> Cells:
    """Header and rows of the accuracy table, one row per arm; the first column is the arm, the others are figures.

    Accuracies are shares with one standard error; the loss is in nats per answer token; the calibration error is a
    share; the last column is the paired difference of the primary metric to the base model.
    """
    primary = results.primary_metric
    metrics = [metric for metric in (results.arms[0].metrics if results.arms else ()) if metric != "loss"]
    calibrated = any(arm.calibration_error is not None for arm in results.arms)
    header = ["arm", "adapted layers", "trainable parameters", *metrics, "loss"]
    header += [*(["calibration error"] if calibrated else []), f"{primary} vs base"]
    return header, [_arm_cells(arm, metrics, primary, calibrated) for arm in results.arms]


def _arm_cells(arm: ArmResult, metrics: Sequence[Metric], primary: Metric, calibrated: bool) -> list[str]:
    """One row of the accuracy table."""
    calibration = NONE if arm.calibration_error is None else f"{arm.calibration_error:.3f}"
    return [
        arm.name,
        str(arm.adapted_layers),
        f"{arm.trainable_parameters:,}",
        *(estimate(arm.metrics.get(metric)) for metric in metrics),
        f"{arm.loss:.3f}",
        *([calibration] if calibrated else []),
        estimate(arm.over_base.get(primary) if arm.over_base else None, sign=True),
    ]


def layer_cells(selection: Selection) -> Cells:
    """Header and rows of the chosen layers, or of their projections: only the columns that the selection knows."""
    header = ["layer", "projections"]
    picked = {place: unit for place, unit in enumerate(selection.units) if selection.has_chosen(unit)}
    rows = [[str(unit.layer), unit.projection or ", ".join(selection.targets[unit.layer])] for unit in picked.values()]
    frequency = selection.stability.frequency if selection.stability else None
    columns = {
        "alpha": [signed(value) for value in flatten(selection.alpha or [])],
        "gate": [f"{value:.2f}" for value in flatten(selection.gates or [])],
        "frequency": [f"{value:.0%}" for value in flatten(frequency or [])],
    }
    for name, values in columns.items():
        if values:
            header.append(name)
            for row, place in zip(rows, picked, strict=True):
                row.append(values[place])
    return header, rows


def signed(value: float) -> str:
    """Alpha with its sign and three decimals."""
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "\N{MINUS SIGN}")


def setting_rows(settings: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Nested settings as rows of dotted name and value; lists and strings as they are written in JSON."""
    rows = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += setting_rows(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            rows.append([f"{prefix}{name}", text])
    return rows
