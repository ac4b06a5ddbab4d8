"""An evaluation's figures for the loggers that a recipe names, such as Weights & Biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import Logger
from rich.console import Console

from flexora.errors import first_line
from flexora.secrets import without_secrets

if TYPE_CHECKING:
    from flexora.scoring.results import Results


def figures(results: Results) -> dict[str, float]:
    """Metrics and loss of every arm, by names such as ``lora/acc_norm``; of a mixture ``lora/Piqa/acc``, too."""
    found: dict[str, float] = {}
    for one, place in [(results, ""), *((part, f"{part.benchmark}/") for part in results.parts)]:
        for arm in one.arms:
            found |= {f"{arm.name}/{place}{name}": metric.value for name, metric in arm.metrics.items()}
            found[f"{arm.name}/{place}loss"] = arm.loss
    return found


def log(loggers: Sequence[Logger], results: Results) -> None:
    """Give every logger the figures once; the results are written by now, and what a logger lacks is only told."""
    for logger in loggers:
        try:
            logger.log_metrics(figures(results), step=0)
            logger.save()
            logger.finalize("success")
        except Exception as error:  # each service has its own
            line = without_secrets(f"evaluate: {type(logger).__name__} did not take the results: {first_line(error)}")
            Console(stderr=True).print(line, soft_wrap=True, markup=False)
