"""What can be known of a whole run before anything is loaded or trained: ``run`` and ``validate`` ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningCLI

from flexora.backbone.limits import Phase
from flexora.data.datamodule import AnswerDataModule
from flexora.errors import FlexoraError
from flexora.finetune.warm_start import require_start
from flexora.scoring.module import ScoreModule
from flexora.scoring.referee import require_referee
from flexora.verbs.arms import PHASE_OF_ARM, adapter_of
from flexora.verbs.phase import lightning_cli
from flexora.verbs.settings import Recipe


def checks(recipe: Recipe, phases: Sequence[Phase], *, trains: bool) -> Iterator[Callable[[], object]]:
    """Yield checks, each of which raises what is wrong; the next may need what the last one found.

    Args:
        recipe: The recipe.
        phases: The phases that are to run.
        trains: Whether there must be rows to train on.
    """
    built: list[AnswerDataModule] = []
    yield lambda: built.append(build(recipe, "evaluate", ScoreModule, {"backbone": recipe.sections["backbone"]}).data)
    for data in built:
        if trains:
            yield partial(_require_trained, data)
        yield data.check_source
        if recipe.sections["evaluate"]["referee"]:
            yield partial(require_referee, data, data.backbone, recipe.devices("evaluate"))
    if "finetune" in phases and all(data.trained for data in built):
        yield recipe.require_end
    searches = "search" in phases and recipe.sections["finetune"]["selection"] is None
    if "finetune" in phases and recipe.initial_adapter is not None and not searches:
        yield partial(require_start, recipe.initial_adapter)
    for phase in phases:
        yield partial(recipe.require_precision, phase)
        yield partial(recipe.require_strategy, phase)
    for arm in recipe.sections["evaluate"]["arms"]:
        if arm not in PHASE_OF_ARM:  # those a run trains by itself
            yield partial(adapter_of, recipe.folder, arm, recipe.sections["data"])


def build(recipe: Recipe, phase: Phase, module_class: type[L.LightningModule], module: dict[str, Any]) -> Namespace:
    """Module (``model``) and ``data`` of a phase, which load nothing yet.

    Raises:
        FlexoraError: If a setting does not suit them.
    """
    folder = recipe.folder.root / phase
    cli = lightning_cli(recipe, phase, module_class, module, {}, [], folder, cli_class=_NoTrainer)
    built: Namespace = cli.config_init
    return built


class _NoTrainer(LightningCLI):
    """Builds no trainer: its device may be on another machine."""

    def instantiate_classes(self) -> None:
        """Build module and data alone."""
        self.config_init = self.parser.instantiate_classes(self.config)


def _require_trained(data: AnswerDataModule) -> None:
    if not data.trained:
        raise FlexoraError(
            f"data: {data.benchmark_name} is for evaluation only, but a run trains; train on another benchmark, or "
            "leave base and PEFT folders alone in evaluate.arms and call flexora evaluate"
        )
