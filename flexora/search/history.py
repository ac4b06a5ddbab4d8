"""The course of a search: one row per outer step, and what its last rows say together."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flexora.files import write_atomically
from flexora.search.rules import SelectionRule


@dataclass(frozen=True)
class HistoryRow:
    """One outer step: losses in nats, Euclidean norm of the hypergradient, and alpha after the step."""

    outer_step: int
    train_loss: float
    validation_loss: float
    hypergradient_norm: float
    alpha: list[float]


def averaged_alpha(rows: Sequence[HistoryRow]) -> list[float]:
    """Mean of alpha over rows, one value per layer: Adam gives noise and signal the same step, so single steps jump."""
    return [sum(values) / len(rows) for values in zip(*(row.alpha for row in rows), strict=True)]


def choice_frequency(rows: Sequence[HistoryRow], rule: SelectionRule, layer_parameters: int) -> list[float]:
    """Share of rows in which the rule chooses each layer."""
    choices = [set(rule(row.alpha, layer_parameters)) for row in rows]
    return [sum(layer in chosen for chosen in choices) / len(rows) for layer in range(len(rows[0].alpha))]


def write_history(path: Path, history: Sequence[HistoryRow]) -> Path:
    """Write one line per outer step: step, losses, norm of the hypergradient, and alpha of every layer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["outer_step", "train_loss", "validation_loss", "hypergradient_norm"]
    writer.writerow([*header, *(f"alpha_{layer}" for layer in range(len(history[0].alpha)))])
    for row in history:
        writer.writerow([row.outer_step, row.train_loss, row.validation_loss, row.hypergradient_norm, *row.alpha])
    return write_atomically(path, text.getvalue())
