"""Rows of studies that were never run."""

from __future__ import annotations

from typing import Any

import numpy as np

from flexora.compare.rows import Outcome, ResultRow

ARMS = ("lora", "flexora", "random", "last", "gradient norm", "LoRA-drop", "rsLoRA", "DoRA", "AdaLoRA", "PiSSA", "EVA")
LAYERS = 30


def result(arm: str, seed: int | None = 0, draw: int = 0, right: int = 0, rows: int = 10, **more: Any) -> ResultRow:
    """A row with ``right`` of ``rows`` answered rightly."""
    cells: dict[str, Any] = {
        "benchmark": "ArcEasy", "split": "test", "metric": "acc_norm", "acc": right / rows, "acc_norm": right / rows,
        "loss": 2.0, "validation_loss": None, "last_validation_loss": None, "train_loss": None, "learning_rate": 2e-4,
        "select_seconds": 0.0, "tune_seconds": 0.0, "finetune_seconds": 60.0, "evaluate_seconds": 20.0,
        "peak_memory_mb": 1000.0, "layers": "0-3", "trainable_parameters": more.pop("parameters", 400),
    }  # fmt: skip
    cells |= {"arm": arm, "seed": seed, "draw": draw, "rows": rows, "score": right / rows, "adapted_layers": 4} | more
    return ResultRow(**cells)


def scored_by_loss(row: ResultRow, benchmark: str = "own") -> ResultRow:
    """The row as one of a benchmark whose primary metric is its loss."""
    changed = {"benchmark": benchmark, "metric": "loss", "score": row.loss, "acc": None, "acc_norm": None}
    return row.model_copy(update=changed)


def outcome(row: ResultRow, order: np.ndarray | None = None) -> Outcome:
    """Outcomes of a row: the first ones are right, in the order given."""
    right = np.arange(row.rows) < round(row.score * row.rows)
    return Outcome.pack(row, row.metric, list(right if order is None else right[order]))


def study(
    arms: int = len(ARMS), benchmarks: int = 3, seeds: int = 3, rows: int = 200
) -> tuple[list[ResultRow], list[Outcome]]:
    """A base model, arms with realistic figures, ``random`` with two draws; what is easy is so for all arms."""
    generator = np.random.default_rng(1)
    results, outcomes = [], []
    for number in range(benchmarks):
        level, ease = 0.5 + 0.08 * number, generator.normal(size=rows)

        def add(arm: str, seed: int | None, draw: int, skill: float, **more: Any) -> None:
            right = ease + generator.normal(scale=0.4, size=rows) < np.quantile(ease, skill)  # noqa: B023
            place = {"benchmark": f"Bench{number}", "rows": rows, "right": int(right.sum())}  # noqa: B023
            results.append(result(arm, seed, draw, **place, **more))
            outcomes.append(Outcome.pack(results[-1], "acc_norm", list(right)))

        add("base", None, 0, level - 0.1, layers=None, parameters=0, adapted_layers=0, loss=4.3, finetune_seconds=0.0)
        for place, arm in enumerate(ARMS[:arms]):
            for seed in range(seeds):
                for draw in range(2 if arm == "random" else 1):
                    whole = arm in ("lora", "rsLoRA", "DoRA", "AdaLoRA", "PiSSA", "EVA")
                    chosen = sorted(generator.permutation(LAYERS)[: 14 + place % 4 - seed % 2]) if not whole else []
                    count = LAYERS if whole else len(chosen)
                    fit = 1.5 + 0.02 * (LAYERS - count) + 0.02 * generator.normal()
                    add(
                        arm, seed, draw, level + 0.06 - 0.004 * place + 0.01 * generator.normal(),
                        layers="0-29" if whole else ", ".join(map(str, chosen)), adapted_layers=count,
                        parameters=15_360 * count, loss=2.6 - fit / 20, train_loss=fit, validation_loss=2.5 - fit / 40,
                        last_validation_loss=2.6 + 0.2 * (1.9 - fit), select_seconds=0.0 if whole else 20.0 * place,
                        finetune_seconds=190.0 + place,
                    )  # fmt: skip
    return results, outcomes
