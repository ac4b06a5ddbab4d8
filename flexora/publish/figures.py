"""The adapter's figures in the two forms that the hub reads: ``model-index`` of the card, ``.eval_results``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry

from flexora.data.own_rows import SET_ASIDE
from flexora.publish.base import Base
from flexora.publish.rows import Rows
from flexora.publish.run import ARM, FinishedRun
from flexora.report.cells import rows_scored
from flexora.scoring.results import Metric, Results

#: What the hub calls the metrics.
HUB_METRICS: dict[Metric, str] = {
    "acc": "accuracy",
    "acc_norm": "accuracy",
    "exact_match": "exact_match",
    "flexible_match": "exact_match",
}


def known_parts(run: FinishedRun, rows: list[Rows]) -> Iterator[tuple[Results, Rows, str]]:
    """The results of every benchmark that has a dataset on the hub, with it and its id there."""
    by_name = {own.name: own for own in rows}
    for part in run.results.parts or [run.results]:
        own = by_name.get(part.benchmark)
        if own is not None and own.dataset is not None:
            yield part, own, own.dataset


def circumstances(run: FinishedRun, base: Base, part: Results) -> str:
    """What has to be said beside a figure: rows, examples, precision, and weights that are not the hub's own."""
    data, backbone = run.evaluation["data"]["init_args"], run.evaluation["backbone"]
    shots = data.get("num_fewshot") or 0
    held = f", base held in {backbone['quantization']}" if backbone["quantization"] else ""
    weights = f"; base model: {base.weights}, not the hub's own weights" if base.weights else ""
    return (
        f"{rows_scored(part)} {part.split} rows, {shots}-shot, base in {backbone['dtype']}{held}, precision "
        f"{part.precision}, seed {run.recipe['seed']}{weights}"
    )


def model_index(run: FinishedRun, base: Base, rows: list[Rows]) -> list[EvalResult]:
    """Every metric of the adapter, for the card."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset,
            dataset_name=part.benchmark,
            dataset_config=own.configuration,
            dataset_split="train" if part.split == SET_ASIDE else part.split,
            metric_type=metric,
            metric_name=f"{metric} ({circumstances(run, base, part)})",
            metric_value=round(estimate.value, 4),
            metric_args={"stderr": round(estimate.stderr, 4), "rows": part.rows, "split_rows": part.split_rows},
            verified=False,
        )
        for part, own, dataset in known_parts(run, rows)
        for metric, estimate in _figures(part).items()
    ]


def eval_result_entries(run: FinishedRun, base: Base, rows: list[Rows]) -> list[EvalResultEntry]:
    """The primary metric on every benchmark that was scored whole; the hub ranks models by it, and asks no further.

    There is none of a cut, of a loss, of rows of the user's own, or of weights that are not the hub's own.
    """
    return [
        EvalResultEntry(
            dataset_id=dataset,
            task_id=own.task,
            value=round(_figures(part)[part.primary_metric].value, 4),
            notes=f"{part.primary_metric}, {circumstances(run, base, part)}",
        )
        for part, own, dataset in known_parts(run, rows)
        if own.official and not base.weights and part.rows == part.split_rows and part.primary_metric in HUB_METRICS
    ]


def _figures(part: Results) -> dict[Metric, Any]:
    return next(arm for arm in part.arms if arm.name == ARM).metrics
