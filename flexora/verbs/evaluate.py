"""``flexora evaluate``: accuracy of the base model and of adapters on the benchmark's reported split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from flexora.backbone.adapters import WEIGHT_FILES, adapter_size
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
    adapters = {arm: _adapter(folder, arm) for arm in recipe.sections["evaluate"]["arms"]}
    settings = recipe.settings("evaluate") | {"adapters": fingerprints(folder, adapters)}
    with folder.locked():
        folder.start("evaluate", settings)
        folder.write_config("evaluate", recipe.text)
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
            if not adapters[-1]:
                raise FlexoraError("--adapter names no folder; give the folder of a PEFT adapter")
        else:
            rest.append(argument)
    return [*rest, f"--evaluate.arms={json.dumps(['base', *adapters])}"] if adapters else rest


def require_arms(arms: Sequence[str]) -> None:
    """Make sure that every arm is known or a folder, before anything is trained for it.

    Raises:
        FlexoraError: Naming the first that is neither.
    """
    for arm in arms:
        if arm != "base" and arm not in PHASE_OF_ARM and not Path(arm).expanduser().is_dir():
            known = ", ".join(["base", *PHASE_OF_ARM])
            raise FlexoraError(f"evaluate.arms: {arm} is neither one of {known} nor the folder of an adapter; mend it")


def fingerprints(folder: RunFolder, arms: Iterable[str]) -> dict[str, str | None]:
    """Hash of every arm's adapter weights, none for the base model or where there are none."""
    hashes: dict[str, str | None] = {}
    for arm in arms:
        place = _place(folder, arm)
        file = place and next((place / name for name in WEIGHT_FILES if (place / name).is_file()), None)
        hashes[arm] = hashlib.sha256(file.read_bytes()).hexdigest() if file else None
    return hashes


def _place(folder: RunFolder, arm: str) -> Path | None:
    if arm == "base":
        return None
    return folder.adapter(PHASE_OF_ARM[arm]) if arm in PHASE_OF_ARM else Path(arm).expanduser()


def _adapter(folder: RunFolder, arm: str) -> Path | None:
    path = _place(folder, arm)
    if path is not None and not (path / "adapter_config.json").is_file():
        raise FlexoraError(
            f"evaluate.arms: {arm} has no adapter in {path}; run flexora run, or set --evaluate.arms or --adapter"
        )
    return path


def _score_arms(cli: LightningCLI, adapters: dict[str, Path | None]) -> list[ArmResult]:
    rows: dict[str, list[RowScore]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for arm, adapter in adapters.items():
        cli.trainer.print(f"evaluate: {arm}")
        module = ScoreModule(cli.model.backbone, None if adapter is None else str(adapter))
        with plain_errors():
            rows[arm] = score(cli.trainer, module, cli.datamodule)
        sizes[arm] = (0, 0) if adapter is None else adapter_size(module.peft_model)
    return [arm_result(arm, rows[arm], rows.get("base"), *sizes[arm]) for arm in adapters]
