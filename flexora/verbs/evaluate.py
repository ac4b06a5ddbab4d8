"""``flexora evaluate``: accuracy of the base model and of adapters on the benchmark's reported split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console

from flexora.backbone.adapters import adapter_size
from flexora.errors import FlexoraError
from flexora.interruption import heed
from flexora.report.html import write_report
from flexora.report.terminal import referee_lines, results_table
from flexora.scoring.accuracy import RowScore, arm_result, average
from flexora.scoring.logged import log
from flexora.scoring.module import ScoreModule, score
from flexora.scoring.referee import compare, harness_model, harness_scores, require_referee
from flexora.scoring.results import Results
from flexora.scoring.samples import write_samples
from flexora.usage import measured
from flexora.verbs.arms import adapter_of, fingerprints
from flexora.verbs.bases import tell_other_base
from flexora.verbs.phase import lightning_cli, plain_errors
from flexora.verbs.scored import asked_for, gone_arms, is_scored, keep_comparisons, require_same_rows
from flexora.verbs.settings import Recipe

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI

    from flexora.data.datamodule import AnswerDataModule
    from flexora.data.multiple_choice import MultipleChoiceDataModule


def main(arguments: Sequence[str]) -> int:
    """Score every arm, and write ``evaluate/results.json``.

    Raises:
        FlexoraError: If the recipe, the data, an adapter or the folder does not allow it.
    """
    recipe = Recipe("evaluate", _long_form(arguments))
    recipe.require_precision("evaluate")
    folder = recipe.folder
    if again := folder.is_done("evaluate") and not is_scored(recipe):
        require_same_rows(recipe)
    wanted = recipe.sections["evaluate"] = asked_for(recipe)
    adapters = {arm: adapter_of(folder, arm, recipe.sections) for arm in wanted["arms"]}
    for arm, adapter in adapters.items():
        tell_other_base(adapter, recipe.sections["backbone"], f"evaluate: {arm}")
    settings = recipe.settings("evaluate") | {"adapters": fingerprints(folder, adapters)}
    cli = lightning_cli(
        recipe,
        "evaluate",
        ScoreModule,
        {"backbone": recipe.sections["backbone"]},
        trainer={"logger": False, "enable_checkpointing": False, "enable_model_summary": False},
        callbacks=[],
        folder=folder.root / "evaluate",
    )
    if wanted["referee"]:
        require_referee(cli.datamodule, cli.model.backbone, cli.trainer.world_size)
    if not cli.trainer.is_global_zero:  # another device's process of the same evaluation: the first one writes
        with plain_errors(recipe, "evaluate"):
            _score(cli, adapters)
        return 0
    for arm in gone_arms(recipe):
        Console(stderr=True).print(
            f"evaluate: {arm}: its adapter is not the one that was scored; left out", soft_wrap=True
        )
    with folder.locked():
        if not again:
            folder.start("evaluate", settings)
        with plain_errors(recipe, "evaluate"), measured(folder.root / "evaluate"):
            results, rows = _score(cli, adapters)
        if again:
            keep_comparisons(results, recipe, settings["adapters"])
        if wanted["samples"]:
            write_samples(folder.samples, cli.datamodule.parts, rows)
        folder.write_config("evaluate", recipe.text)
        results.write(folder.results)
        if wanted["referee"]:
            # Done as far as it goes: nothing is lost where the referee fails, and the same command asks it again.
            folder.finish("evaluate", settings | {"evaluate": {**wanted, "referee": None}})
            with plain_errors(recipe, "evaluate"):
                _ask_referee(cli, adapters, rows, results)
            results.write(folder.results)
        folder.finish("evaluate", settings)
        write_report(folder.root, recipe.sections["report"]["title"])
    log(recipe.trainer("evaluate").get("logger"), results)
    console = Console()
    for part in [*results.parts, results]:
        console.print(results_table(part))
    for line in referee_lines(results):
        console.print(line, soft_wrap=True)
    return 0


def _long_form(arguments: Sequence[str]) -> list[str]:
    """``--adapter FOLDER``, once or several times, is the base model beside these; ``--referee`` a setting."""
    given, rest, adapters = iter(arguments), [], []
    for argument in given:
        name, equals, value = argument.partition("=")
        if name == "--referee":
            rest.append("--evaluate.referee=" + (value if equals else next(given, "")))
        elif name == "--adapter":
            adapters.append(value if equals else next(given, ""))
            if not adapters[-1]:
                raise FlexoraError("--adapter names no folder; give the folder of a PEFT adapter")
        else:
            rest.append(argument)
    return [*rest, f"--evaluate.arms={json.dumps(['base', *adapters])}"] if adapters else rest


#: For each benchmark the scores of every arm.
Scores = list[dict[str, list[RowScore]]]


def _score(cli: LightningCLI, adapters: dict[str, Path | None]) -> tuple[Results, Scores]:
    """Score every arm on every part of the data; each adapter is loaded once."""
    parts: Sequence[AnswerDataModule] = cli.datamodule.parts
    rows: Scores = [{} for _ in parts]
    sizes: dict[str, tuple[int, int]] = {}
    for arm, adapter in adapters.items():
        module = ScoreModule(cli.model.backbone, None if adapter is None else str(adapter))
        for part, own in zip(parts, rows, strict=True):
            cli.trainer.print(f"evaluate: {arm} on {part.benchmark_name}")
            own[arm] = score(cli.trainer, module, part)
        sizes[arm] = (0, 0) if adapter is None else adapter_size(module.peft_model)
        del module
    results = [
        Results(
            benchmark=part.benchmark_name,
            split=part.scored_split,
            rows=len(part.reported_set),
            split_rows=part.reported_rows,
            model=cli.model.backbone.model,
            precision=cli.trainer.precision,
            primary_metric=part.primary_metric,
            arms=[arm_result(arm, own[arm], own.get("base"), part.metrics, *sizes[arm]) for arm in adapters],
        )
        for part, own in zip(parts, rows, strict=True)
    ]
    return results[0] if len(results) == 1 else average(cli.datamodule.benchmark_name, results), rows


def _ask_referee(cli: LightningCLI, adapters: dict[str, Path | None], rows: Scores, results: Results) -> None:
    """Have the harness score the same, and put how far it is into the results; it loads each adapter once."""
    data: AnswerDataModule = cli.datamodule
    for place, (arm, adapter) in enumerate(adapters.items()):
        model = harness_model(data, cli.model.backbone, adapter, str(cli.trainer.strategy.root_device))
        for part, own, result in zip(data.parts, rows, results.parts or [results], strict=True):
            heed()
            cli.trainer.print(f"evaluate: the referee scores {arm} on {part.benchmark_name}")
            scores = harness_scores(cast("MultipleChoiceDataModule", part), model)
            result.arms[place].referee = compare(own[arm], scores)
        del model  # before the next one is loaded
