"""``results.csv``, one row for each arm, benchmark and seed, and ``outcomes.csv``, which rows each answered rightly."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from flexora.errors import FlexoraError
from flexora.files import write_atomically


class _Line(BaseModel):
    """A line of a CSV file: empty cells are what is not known.

    Attributes:
        benchmark: Name of the benchmark in the study.
        arm: Name of the arm.
        seed: The trial's seed; none for the base model, which has none.
        draw: Number of the draw, of an arm with several for each seed.
    """

    model_config = ConfigDict(allow_inf_nan=False, extra="forbid", frozen=True)
    benchmark: str
    arm: str
    seed: int | None
    draw: int

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value


class ResultRow(_Line):
    """What one trial reached and took. Losses are nats per answer token, times seconds.

    Attributes:
        layers: The chosen layers, ``0, 3, 5-9``; with module-wise choices by projection.
        adapted_layers: How many they are.
        trainable_parameters: Parameters of the adapter.
        learning_rate: Peak learning rate, the tuned one where several were tried.
        split: What was scored: the reported split, or ``development``.
        rows: Number of rows scored.
        metric: The benchmark's primary metric.
        acc: Share of right choices by log-likelihood.
        acc_norm: The same per character.
        score: The primary metric.
        loss: On the rows scored.
        validation_loss: On the held-out rows, of the adapter that was kept (that of the best epoch).
        last_validation_loss: After the last epoch.
        train_loss: Mean over the last epoch's steps.
        select_seconds: Time of the choice of layers.
        tune_seconds: Time of the fine-tunes with learning rates that lost.
        finetune_seconds: Time of the fine-tune.
        evaluate_seconds: Time of the scoring.
        peak_memory_mb: Largest memory of any phase: on a GPU what torch allocated, else the process's resident memory.
    """

    layers: str | None
    adapted_layers: int
    trainable_parameters: int
    learning_rate: float | None
    split: str
    rows: int
    metric: str
    acc: float | None
    acc_norm: float | None
    score: float
    loss: float
    validation_loss: float | None
    last_validation_loss: float | None
    train_loss: float | None
    select_seconds: float
    tune_seconds: float
    finetune_seconds: float
    evaluate_seconds: float
    peak_memory_mb: float

    @property
    def wall_seconds(self) -> float:
        """Time of all that the trial took before its adapter could be used."""
        return self.select_seconds + self.tune_seconds + self.finetune_seconds


class Outcome(_Line):
    """Which of the scored rows an adapter answered rightly.

    Attributes:
        metric: By which metric.
        rows: Number of rows.
        right: One bit a row, in the order of the rows, as hexadecimal digits (numpy's ``packbits``).
    """

    metric: str
    rows: int
    right: str

    @field_validator("right")
    @classmethod
    def _one_bit_a_row(cls, right: str, info: ValidationInfo) -> str:
        rows = info.data.get("rows", 0)
        if re.fullmatch("[0-9a-f]*", right) is None or len(right) != 2 * math.ceil(rows / 8):
            raise ValueError(f"is not one bit for each of {rows} rows, as hexadecimal digits")
        return right

    @classmethod
    def pack(cls, row: ResultRow, metric: str, right: Sequence[bool]) -> Outcome:
        """Bits as a line."""
        bits = np.packbits(np.array(right, dtype=bool)).tobytes().hex()
        place = row.model_dump(include={"benchmark", "arm", "seed", "draw"})
        return cls(**place, metric=metric, rows=len(right), right=bits)

    def unpack(self) -> np.ndarray:
        """1.0 for each row that was answered rightly, else 0.0: ``[rows]``, float64."""
        packed = np.frombuffer(bytes.fromhex(self.right), dtype=np.uint8)
        return np.unpackbits(packed, count=self.rows).astype(np.float64)


Line = TypeVar("Line", bound=_Line)


def write_lines(path: Path, lines: Iterable[_Line], kind: type[_Line]) -> Path:
    """Write a CSV file atomically, with figures at the precision of float32."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(kind.model_fields), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        cells = {name: f"{value:.7g}" if isinstance(value, float) else value for name, value in line}
        writer.writerow(cells)
    return write_atomically(path, text.getvalue())


def read_lines(path: Path, kind: type[Line]) -> list[Line]:
    """Read a CSV file.

    Raises:
        FlexoraError: If it is missing or malformed.
    """
    try:
        with path.open(newline="") as file:
            return [kind.model_validate(line) for line in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}" if first else str(error).splitlines()[0]
        raise FlexoraError(f"cannot read {path}: {reason}; run flexora compare again") from error
