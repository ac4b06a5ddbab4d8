"""Outer steps that are left out because a value in them is not finite."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flexora.data.bilevel import BilevelDataModule, OuterBatch
from flexora.finite import NonFiniteError, leave_out
from flexora.search.history import HistoryRow

if TYPE_CHECKING:
    from flexora.search.module import SearchModule


def left_out(search: SearchModule, error: NonFiniteError, batch: OuterBatch, repeat: int) -> HistoryRow:
    """The row of the present outer step as one that is left out, after word of it.

    Args:
        search: The search.
        error: What was found.
        batch: The step's data.
        repeat: The repeat it belongs to, from 0.

    Raises:
        FlexoraError: If no more steps may be left out.
    """
    data, step = getattr(search.trainer, "datamodule", None), search.outer_step + 1
    told = error.what
    if isinstance(data, BilevelDataModule):
        trained = [row for micros in batch["train"] for micro in micros for row in micro["rows"].tolist()]
        told = error.told(data.rows.split(repeat)[error.held_out], data.rows.unit, otherwise=trained)
    count = sum(row.skipped for row in search.history) + 1
    word = leave_out(f"search: outer step {step}", told, count, search.skip_non_finite, "search.inner_optimizer.lr")
    search.print(word)
    return HistoryRow(step, repeat + 1, math.nan, math.nan, math.nan, search.alpha.detach().flatten().tolist())
