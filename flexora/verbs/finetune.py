"""``flexora finetune``: train an adapter on the chosen layers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from lightning.pytorch.cli import LightningCLI
from peft import AdaLoraConfig
from rich.console import Console

from flexora.backbone.adapters import trainable_parameters
from flexora.backbone.loading import Backbone, describe
from flexora.errors import FlexoraError
from flexora.finetune.callbacks import FinetuneFiles
from flexora.finetune.history import EpochHistory
from flexora.finetune.module import FinetuneModule
from flexora.finetune.warm_start import require_start
from flexora.report.html import write_report
from flexora.search.named import resolve_selection
from flexora.search.selection import Selection
from flexora.usage import measured
from flexora.verbs.bases import require_same_base
from flexora.verbs.phase import lightning_cli, plain_errors, read_from
from flexora.verbs.settings import Recipe, long_form
from flexora.zoo.models import known_model


def main(arguments: Sequence[str]) -> int:
    """Fine-tune, and write ``finetune/adapter``: the best by validation loss; AdaLoRA's last step.

    Raises:
        FlexoraError: If the recipe, the selection, the data or the folder does not allow it.
    """
    recipe = Recipe("finetune", [long_form(argument) for argument in arguments])
    recipe.require_precision("finetune")
    recipe.require_end()
    folder, name = recipe.folder, recipe.sections["finetune"]["folder"]
    selection = _selection(recipe)
    if recipe.initial_adapter is not None:
        require_start(recipe.initial_adapter)
        started = f"finetune.warm_start: {recipe.initial_adapter}"
        require_same_base(recipe.initial_adapter.parent, recipe.sections["backbone"], started)
    place = folder.root / name
    files = FinetuneFiles(place)
    cli = lightning_cli(
        recipe,
        "finetune",
        FinetuneModule,
        recipe.module("finetune") | {"selection": str(folder.selection_of(name))},
        trainer={"enable_checkpointing": False, "enable_model_summary": False},
        callbacks=[files, EpochHistory(place)],
        folder=place,
    )
    if not cli.trainer.is_global_zero:  # another device's process of the same fine-tune: the first one writes
        _fit(cli, recipe, files)
        return 0
    with folder.locked():
        settings = recipe.settings("finetune") | {
            "targets": selection.model_dump(mode="json")["targets"],
            "devices": cli.trainer.world_size,  # times the accumulation they decide the batches of a step
            **read_from(cli),
        }
        folder.start(name, settings)
        folder.write_config(name, recipe.text)
        selection.write(folder.selection_of(name))
        with measured(place):
            _fit(cli, recipe, files)
        if files.best_weights is None:
            raise FlexoraError(
                "the trainer validated nothing; remove what keeps it from that from trainer or finetune.trainer "
                "(fast_dev_run, max_time, limit_train_batches)"
            )
        if not files.validated:
            Console().print(
                "finetune: nothing was validated, so the adapter is that of the last step",
                soft_wrap=True,
            )
        tuned = cast("FinetuneModule", cli.model)
        parameters = trainable_parameters(tuned.peft_model)
        # AdaLoRA has brought its ranks down to target_r at the end alone.
        tuned.save_adapter(place / "adapter", None if isinstance(tuned.adapter, AdaLoraConfig) else files.best_weights)
        folder.finish(name, settings)
        if name == "finetune":  # the report knows no other
            write_report(folder.root, recipe.sections["report"]["title"])
    Console().print(
        f"{len(selection.layers)} layers, {parameters:,} trainable parameters; adapter in {place / 'adapter'}",
        soft_wrap=True,
    )
    return 0


def _fit(cli: LightningCLI, recipe: Recipe, files: FinetuneFiles) -> None:
    """Train to the end, from the newest checkpoint if there is one."""
    newest = files.checkpoints.newest(cli.trainer.print)
    with plain_errors(recipe, "finetune"):
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=newest, weights_only=True)


def _selection(recipe: Recipe) -> Selection:
    """What the user named, or what the search wrote."""
    text = recipe.sections["finetune"]["selection"]
    if text is None:
        if not recipe.folder.selection.is_file():
            raise FlexoraError(
                f"finetune: {recipe.folder.selection} does not exist; run flexora search first, or give --selection"
            )
        chosen = f"finetune: {recipe.folder.selection}"
        require_same_base(recipe.folder.selection.parent, recipe.sections["backbone"], chosen)
        text = str(recipe.folder.selection)
    architecture = describe(Backbone(**recipe.sections["backbone"]).load_config())
    selection = resolve_selection(text, architecture.name, architecture.num_layers, recipe.target_modules("finetune"))
    if recipe.sections["finetune"]["selection"] is None:
        return selection
    own, theirs = recipe.sections["backbone"]["model"], selection.base.model
    if theirs is not None and theirs != own and (known_model(own) or own) != known_model(theirs):
        Console().print(f"{text} was chosen for {theirs}; here it is used for {own}", soft_wrap=True)
    base = selection.base.model_copy(update={"model": own, "revision": recipe.sections["backbone"]["revision"]})
    return selection.model_copy(update={"base": base, "source": text})
