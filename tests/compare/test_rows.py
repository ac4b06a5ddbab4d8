"""The CSV files of a study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flexora.compare.rows import Outcome, ResultRow, read_lines, write_lines
from flexora.errors import FlexoraError


def row(**changed: object) -> ResultRow:
    """A row with everything filled in."""
    values: dict[str, object] = {
        "benchmark": "ARC-Easy",
        "arm": 'LoRA q,v "tuned"',
        "seed": 1,
        "draw": 0,
        "layers": "0, 3, 5-9",
        "adapted_layers": 7,
        "trainable_parameters": 107_520,
        "learning_rate": 1e-3,
        "split": "test",
        "rows": 11,
        "metric": "acc_norm",
        "acc": 0.25,
        "acc_norm": 0.5,
        "score": 0.5,
        "loss": 2.5,
        "validation_loss": 2.25,
        "last_validation_loss": 2.375,
        "train_loss": 1.5,
        "select_seconds": 10.0,
        "tune_seconds": 20.0,
        "finetune_seconds": 30.0,
        "evaluate_seconds": 40.0,
        "peak_memory_mb": 1000.0,
    }
    return ResultRow.model_validate(values | changed)


def test_rows_survive_being_written(tmp_path: Path) -> None:
    rows = [row(), row(arm="base", seed=None, layers=None, learning_rate=None, train_loss=None)]
    assert read_lines(write_lines(tmp_path / "results.csv", rows, ResultRow), ResultRow) == rows
    assert rows[0].wall_seconds == 60


@pytest.mark.parametrize("count", [1, 8, 13, 1000])
def test_outcomes_survive_being_packed(count: int, tmp_path: Path) -> None:
    right = np.random.default_rng(count).random(count) < 0.5
    packed = Outcome.pack(row(), "acc", right.tolist())
    (read,) = read_lines(write_lines(tmp_path / "outcomes.csv", [packed], Outcome), Outcome)
    assert (read.unpack() == right).all()
    assert (read.arm, read.seed, read.metric, read.rows) == (row().arm, 1, "acc", count)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    with pytest.raises(FlexoraError, match=r"cannot read .*results.csv: .*; run flexora compare again"):
        read_lines(file, ResultRow)
    write_lines(file, [row()], ResultRow)
    file.write_text(file.read_text().replace("107520", "many"))
    with pytest.raises(FlexoraError, match="trainable_parameters: Input should be a valid integer"):
        read_lines(file, ResultRow)
