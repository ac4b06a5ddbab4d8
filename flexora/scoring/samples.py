"""``samples.jsonl``: what every arm said to every row. It stays on this machine: it quotes the benchmark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexora.files import write_atomically
from flexora.scoring.accuracy import RowScore

if TYPE_CHECKING:
    from flexora.data.datamodule import AnswerDataModule


def write_samples(
    path: Path, parts: Sequence[AnswerDataModule], rows: Sequence[Mapping[str, Sequence[RowScore]]]
) -> Path:
    """Write one line for each row and arm.

    Args:
        path: The file.
        parts: The benchmarks.
        rows: For each of them the scores of every arm, in the order of its reported rows.
    """
    lines = [
        json.dumps(
            {"benchmark": part.benchmark_name, "row": line, "arm": arm, **_sample(score, part)}, ensure_ascii=False
        )
        for part, arms in zip(parts, rows, strict=True)
        for arm, scores in arms.items()
        for line, score in zip(part.reported_set["line"], scores, strict=True)
    ]
    return write_atomically(path, "\n".join(lines) + "\n")


def _sample(row: RowScore, part: AnswerDataModule) -> dict[str, Any]:
    metrics: dict[str, Any] = {metric: row.value(metric) for metric in part.metrics}
    if row.generated is not None:
        return {"generated": row.generated, "log_likelihood": row.log_likelihoods[0], **metrics}
    if len(row.log_likelihoods) == 1:
        return {"log_likelihood": row.log_likelihoods[0], **metrics}
    prediction = row.prediction(part.primary_metric)
    return {"log_likelihoods": row.log_likelihoods, "prediction": prediction, "answer": row.answer, **metrics}
