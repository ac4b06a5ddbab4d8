"""The course of a search: one row per outer step, and what its last rows say together."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path

from flexora.files import write_atomically
from flexora.search.units import Units


@dataclass(frozen=True)
class HistoryRow:
    """One outer step.

    Attributes:
        outer_step: Its number, from 1, counted through all repeats.
        repeat: The repeat it belongs to, from 1.
        train_loss: Mean loss of the inner steps, in nats per answer token; per question where choices are contrasted.
        validation_loss: Outer loss, in nats per answer token or question: of that the two may have each their own.
        hypergradient_norm: Euclidean norm of the hypergradient.
        alpha: Hyperparameters after the step, flat, one per unit.
        cosine: Cosine of the hypergradient with the exact one, where it was checked.

    Losses and norm are NaN in a step that was left out.
    """

    outer_step: int
    repeat: int
    train_loss: float
    validation_loss: float
    hypergradient_norm: float
    alpha: list[float]
    cosine: float | None = None

    @property
    def skipped(self) -> bool:
        """Whether the step was left out, for a value in it was not finite."""
        return math.isnan(self.hypergradient_norm)


def last_of_each_repeat(rows: Sequence[HistoryRow], count: int) -> list[list[HistoryRow]]:
    """The last ``count`` rows of each repeat."""
    return [list(group)[-count:] for _, group in groupby(rows, key=lambda row: row.repeat)]


def averaged_alpha(rows: Sequence[HistoryRow]) -> list[float]:
    """Mean of alpha over rows, one value per unit: Adam gives noise and signal the same step, so single steps jump."""
    return [sum(values) / len(rows) for values in zip(*(row.alpha for row in rows), strict=True)]


def write_history(path: Path, history: Sequence[HistoryRow], units: Units) -> Path:
    """Write one line per outer step: its scalars, and alpha of every unit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    scalars = [field.name for field in fields(HistoryRow) if field.name != "alpha"]
    writer.writerow([*scalars, *(f"alpha_{unit}" for unit in units)])
    for row in history:
        writer.writerow([*(getattr(row, name) for name in scalars), *row.alpha])
    return write_atomically(path, text.getvalue())
