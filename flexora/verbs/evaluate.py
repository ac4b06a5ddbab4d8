"""``flexora evaluate``: accuracy of the base model and of adapters on the benchmark's reported split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from flexora.backbone.adapters import adapter_size
from flexora.errors import FlexoraError
from flexora.report.html import write_report
from flexora.report.terminal import results_table
from flexora.runfolder import RunFolder
from flexora.scoring.accuracy import RowScore, arm_result
from flexora.scoring.module import ScoreModule, score
from flexora.scoring.results import ArmResult, Results
from flexora.verbs.phase import Recipe, lightning_cli, plain_errors

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI

#: Phase that trains the adapter of an arm; any other arm but the base is a PEFT folder.
PHASE_OF_ARM = {"flexora": "finetune", "lora": "lora"}


def main(arguments: Sequence[str]) -> int:
    """Score every arm, and write ``evaluate/results.json``.

    Raises:
        FlexoraError: If the recipe, the data, an adapter or the folder does not allow it.
    """
    recipe = Recipe("evaluate", _long_form(arguments))
    recipe.require_precision("evaluate")
    folder = recipe.folder
    arms = recipe.sections["evaluate"]["arms"]
    adapters = {arm: _adapter(folder, arm) for arm in arms}
    settings = recipe.settings("evaluate") | {"arms": arms}
    with folder.locked():
        folder.start("evaluate", settings)
        folder.write_config(recipe.text)
        cli = lightning_cli(
            recipe,
            "evaluate",
            ScoreModule,
            {"backbone": recipe.sections["backbone"]},
            trainer={"logger": False, "enable_checkpointing": False, "enable_model_summary": False},
            callbacks=[],
            folder=folder.root / "evaluate",
        )
        data = cli.datamodule
        results = Results(
            benchmark=data.benchmark_name,
            split=data.reported_split,
            rows=len(data.reported_set),
            split_rows=data.reported_rows,
            model=cli.model.backbone.model,
            precision=cli.trainer.precision,
            primary_metric=data.primary_metric,
            arms=_score_arms(cli, adapters),
        )
        results.write(folder.results)
        folder.finish("evaluate", settings)
        write_report(folder.root, recipe.sections["report"]["title"])
    Console().print(results_table(results))
    return 0


def _long_form(arguments: Sequence[str]) -> list[str]:
    """``--adapter FOLDER``, once or several times, is short for the base model beside these adapters."""
    given, rest, adapters = iter(arguments), [], []
    for argument in given:
        name, equals, value = argument.partition("=")
        if name == "--adapter":
            adapters.append(value if equals else next(given, ""))
        else:
            rest.append(argument)
    return [*rest, f"--evaluate.arms={json.dumps(['base', *adapters])}"] if adapters else rest


def _adapter(folder: RunFolder, arm: str) -> Path | None:
    if arm == "base":
        return None
    path = folder.adapter(PHASE_OF_ARM[arm]) if arm in PHASE_OF_ARM else Path(arm).expanduser()
    if not (path / "adapter_config.json").is_file():
        raise FlexoraError(
            f"evaluate.arms: {arm} has no adapter in {path}; run flexora run, or set --evaluate.arms or --adapter"
        )
    return path


def _score_arms(cli: LightningCLI, adapters: dict[str, Path | None]) -> list[ArmResult]:
    rows: dict[str, list[RowScore]] = {}
    arms = []
    for arm, adapter in adapters.items():
        cli.trainer.print(f"evaluate: {arm}")
        module = ScoreModule(cli.model.backbone, None if adapter is None else str(adapter))
        with plain_errors():
            rows[arm] = score(cli.trainer, module, cli.datamodule)
        layers, parameters = (0, 0) if adapter is None else adapter_size(module.peft_model)
        arms.append(arm_result(arm, rows[arm], rows.get("base"), layers, parameters))
    return arms
