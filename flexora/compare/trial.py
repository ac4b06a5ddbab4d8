"""One trial: the commands that choose layers, fine-tune and score, and the row that comes of it."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flexora.compare.decisive import shareable
from flexora.compare.kept import (
    CHOICE,
    chosen_by,
    decisive,
    is_done,
    keep_row,
    kept_row,
    taken_from_others,
)
from flexora.compare.rows import Outcome, ResultRow
from flexora.compare.selectors import FromSearch, Search, Task
from flexora.compare.study import Study, Trial
from flexora.files import new_folder, write_atomically, write_json
from flexora.finetune.history import read_history
from flexora.report.summary import listing
from flexora.runfolder import RunFolder
from flexora.scoring.results import Metric, Results
from flexora.search.selection import Selection
from flexora.usage import Usage

if TYPE_CHECKING:
    from flexora.verbs.settings import Recipe

#: Metrics that are 1 or 0 for each row.
RIGHT_OR_WRONG: tuple[Metric, ...] = ("acc", "acc_norm", "exact_match", "flexible_match")


def commands(study: Study, trial: Trial, arguments: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield what is left of a trial: the name of each step and its command, which must have succeeded before the next.

    Args:
        study: The study.
        trial: The trial; those that it needs are done.
        arguments: Command line of the study, for steps that parse it again.
    """
    folder = study.run_folder(trial)
    if is_done(study, trial):  # as it was before one that it needs was done again
        return
    file = _write_recipe(study, trial, folder)
    phase = [sys.executable, "-m", "flexora"]
    recipe = ["--config", str(study.base_recipe(trial)), "--config", str(file)]
    arm = study.arms[trial.arm]
    place: str | None = None
    if not study.is_base(trial.arm):
        if isinstance(arm.layers, Search):
            if not folder.is_done("search"):
                yield "search", [*phase, "search", *recipe]
            selection = folder.selection
        else:
            selection = folder.selection_of(CHOICE)
            if not selection.is_file() and arm.layers.looks:
                yield "choice", [sys.executable, "-m", "flexora.compare.choice", str(trial), *arguments]
            elif not selection.is_file():
                choose(study, trial)
        for name, rate in _fine_tunes(study, trial).items():
            if not folder.is_done(name):
                own = [f"--finetune.selection={selection}", f"--finetune.folder={name}"]
                own += [] if rate is None else [f"--finetune.learning_rate={rate}"]
                yield f"fine-tune{'' if rate is None else f' at {rate:g}'}", [*phase, "finetune", *recipe, *own]
        place = str(folder.adapter(_best(study, trial, folder)))
    if not folder.is_done("evaluate"):
        arms = json.dumps([place or "base"])
        scored = [f"--evaluate.arms={arms}", "--evaluate.samples=true"]
        yield "evaluation", [*phase, "evaluate", *recipe, *scored]
    row = _row(study, trial, folder)
    keep_row(folder, row, _outcomes(folder, row))


def choose(study: Study, trial: Trial) -> Selection:
    """Have a trial's selector choose, and write its choice."""
    from flexora.backbone.loading import Backbone, describe
    from flexora.search.named import resolve_selection
    from flexora.verbs.settings import Recipe

    folder = study.run_folder(trial)
    file = folder.root / "recipe.yaml"
    recipe = Recipe("finetune", ["--config", str(study.base_recipe(trial)), "--config", str(file)])
    config = describe(Backbone(**recipe.sections["backbone"]).load_config())
    arm = study.arms[trial.arm]
    needed = {need.arm: chosen_by(study, need) for need in study.needs(trial) if need.arm in arm.layers.needs}
    module, data = _module_and_data(recipe) if arm.layers.looks else (None, None)
    one = (trial.benchmark, trial.seed, trial.draw)
    task = Task(config.num_layers, *one, needed, recipe.trainer("finetune"), module, data)
    chosen = arm.layers.choose(task)
    text = ",".join(map(str, chosen))
    selection = resolve_selection(text, config.name, config.num_layers, recipe.target_modules("finetune"))
    if isinstance(chosen, dict):
        among = selection.targets[selection.layers[0]]
        selection = selection.model_copy(update={"targets": chosen, "projections": among})
    searched = _searched(study, trial)
    if searched and study.run_folder(searched).adapter("search").is_dir():  # a warm start takes it from there
        with new_folder(folder.adapter(CHOICE), replace=True) as place:
            shutil.copytree(study.run_folder(searched).adapter("search"), place, dirs_exist_ok=True)
    selection.write(folder.selection_of(CHOICE))
    return selection


def _searched(study: Study, trial: Trial) -> Trial | None:
    """The trial whose search a trial goes by; none where it makes its own choice."""
    layers = study.arms[trial.arm].layers
    return Trial(trial.benchmark, layers.arm, trial.seed) if isinstance(layers, FromSearch) else None


def _outcomes(folder: RunFolder, row: ResultRow) -> list[Outcome]:
    with folder.samples.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    names = [name for name in RIGHT_OR_WRONG if name in lines[0] and len({line["benchmark"] for line in lines}) == 1]
    return [Outcome.pack(row, name, [line[name] == 1.0 for line in lines]) for name in names]


def _module_and_data(recipe: Recipe) -> tuple[Any, Any]:
    import lightning as L

    from flexora.finetune.module import FinetuneModule
    from flexora.verbs.checks import build

    L.seed_everything(recipe.sections["seed"], verbose=False)
    built = build(recipe, "finetune", FinetuneModule, recipe.module("finetune") | {"selection": "all"})
    return built.model, built.data


def _write_recipe(study: Study, trial: Trial, folder: RunFolder) -> Path:
    kept = decisive(study, trial) | {"taken": taken_from_others(study, trial)}
    write_json(folder.root / "trial.json", shareable(kept))
    settings = yaml.safe_dump(study.settings_of(trial), sort_keys=False, allow_unicode=True)
    return write_atomically(folder.root / "recipe.yaml", settings)


def _fine_tunes(study: Study, trial: Trial) -> dict[str, float | None]:
    """Folders of a trial's fine-tunes, with the learning rate of each where it is not the recipe's."""
    arm = study.arms[trial.arm]
    first = Trial(trial.benchmark, arm.learning_rate_of or trial.arm, study.seeds[0])
    if arm.learning_rates and trial == first:
        return {f"finetune-{rate:g}": rate for rate in arm.learning_rates}
    if arm.learning_rates or arm.learning_rate_of:
        return {"finetune": kept_row(study.run_folder(first)).learning_rate}
    return {"finetune": None}


def _best(study: Study, trial: Trial, folder: RunFolder) -> str:
    """Folder of the fine-tune with the lowest loss on the held-out rows."""
    losses = {name: kept_loss(folder, name) for name in _fine_tunes(study, trial)}
    return min(losses, key=lambda name: math.inf if losses[name] is None else float(losses[name] or 0.0))


def kept_loss(folder: RunFolder, name: str) -> float | None:
    """Validation loss of a fine-tune's adapter, that of the best epoch (AdaLoRA's: the last); none if not finite."""
    losses = [_finite(row.get("val_loss")) for row in read_history(folder.root / name / "history.csv")]
    if folder.settings(name)["adapter"]["class_path"].endswith("AdaLoraConfig"):
        losses = losses[-1:]
    return min((loss for loss in losses if loss is not None), default=None)


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _row(study: Study, trial: Trial, folder: RunFolder) -> ResultRow:
    results = Results.read(folder.results)
    (arm,) = results.arms
    base = study.is_base(trial.arm)
    names = [] if base else list(_fine_tunes(study, trial))
    best = None if base else _best(study, trial, folder)
    selection = None if base else Selection.read(folder.selection_of(str(best)))
    history = [] if base else read_history(folder.root / str(best) / "history.csv")
    usage = {name: Usage.read(folder.root / name) for name in ("search", CHOICE, *names, "evaluate")}
    searched = _searched(study, trial)
    searched_seconds = kept_row(study.run_folder(searched)).select_seconds if searched else 0.0
    values = {metric: estimate.value for metric, estimate in arm.metrics.items()}
    return ResultRow(
        benchmark=trial.benchmark,
        arm=trial.arm,
        seed=None if base else trial.seed,
        draw=trial.draw,
        layers=None if selection is None else listing(selection),
        adapted_layers=arm.adapted_layers,
        trainable_parameters=arm.trainable_parameters,
        learning_rate=None if best is None else folder.settings(best)["finetune"]["learning_rate"],
        split=results.split,
        rows=results.rows,
        metric=results.primary_metric,
        acc=values.get("acc"),
        acc_norm=values.get("acc_norm"),
        score=values[results.primary_metric],
        loss=arm.loss,
        validation_loss=None if best is None else kept_loss(folder, best),
        last_validation_loss=_finite(history[-1].get("val_loss")) if history else None,
        train_loss=_finite(history[-1].get("train_loss")) if history else None,
        select_seconds=usage["search"].seconds + usage[CHOICE].seconds + searched_seconds,
        tune_seconds=sum(usage[name].seconds for name in names if name != best),
        finetune_seconds=0.0 if best is None else usage[best].seconds,
        evaluate_seconds=usage["evaluate"].seconds,
        peak_memory_mb=max(one.peak_memory_bytes for one in usage.values()) / 1e6,
    )
