"""An evaluation's figures for the loggers that a recipe names, such as Weights & Biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser
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


def log(setting: Any, results: Results) -> None:
    """Give every logger the figures once; the results are written by now, and what a logger lacks is only told.

    Args:
        setting: ``trainer.logger`` of the recipe; loggers that it does not name get nothing.
        results: The figures.
    """
    if setting is None or isinstance(setting, bool):
        return
    for one in setting if isinstance(setting, list) else [setting]:
        name = str(one["class_path"]).rpartition(".")[2]
        try:
            logger = _made(one)
            logger.log_metrics(figures(results), step=0)
            logger.save()
            logger.finalize("success")
        except (Exception, SystemExit) as error:  # its package may be missing; each service has errors of its own
            line = without_secrets(f"evaluate: {name} did not take the results: {first_line(error)}")
            Console(stderr=True).print(line, soft_wrap=True, markup=False)


def _made(setting: Any) -> Logger:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--logger", type=Logger)
    logger: Logger = parser.instantiate_classes(parser.parse_object({"logger": setting})).logger
    return logger
