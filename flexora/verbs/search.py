"""``flexora search``: find the decoder layers that deserve LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from lightning.pytorch.cli import LightningCLI
from rich.console import Console

from flexora.errors import FlexoraError
from flexora.report.html import write_report
from flexora.report.summary import chosen, listing, stability_lines
from flexora.report.terminal import gate_bars
from flexora.search.callbacks import SearchFiles
from flexora.search.module import SearchModule
from flexora.usage import measured
from flexora.verbs.phase import lightning_cli, plain_errors, read_from
from flexora.verbs.settings import Recipe

#: What the Trainer does under automatic optimisation, and the setting of the search that stands for it.
OWN_SETTINGS = {"gradient_clip_val": "clip_norm", "accumulate_grad_batches": "accumulate"}


def main(arguments: Sequence[str]) -> int:
    """Search, and write ``search/selection.json`` and the LoRA that the search trained, ``search/adapter``.

    Raises:
        FlexoraError: If the recipe, the data or the folder does not allow it.
    """
    recipe = Recipe("search", arguments)
    recipe.require_precision("search")
    for name, own in OWN_SETTINGS.items():
        if name in recipe.sections["search"]["trainer"]:
            raise FlexoraError(f"search.trainer.{name}: the search optimises by itself; set search.{own} instead")
    folder = recipe.folder
    cli = lightning_cli(
        recipe,
        "search",
        SearchModule,
        recipe.module("search"),
        # One epoch of outer steps; checkpoints, clipping and accumulation are the search's own.
        trainer={
            "max_epochs": 1,
            "max_steps": -1,
            "gradient_clip_val": None,
            "accumulate_grad_batches": 1,
            "enable_checkpointing": False,
            "enable_model_summary": False,
        },
        callbacks=[SearchFiles(folder.root / "search")],
        folder=folder.root / "search",
    )
    if not cli.trainer.is_global_zero:  # another device's process of the same search: the first one writes
        _fit(cli, recipe)
        return 0
    with folder.locked():
        settings = recipe.settings("search") | read_from(cli)
        folder.start("search", settings)
        folder.write_config("search", recipe.text)
        with measured(folder.root / "search"):
            _fit(cli, recipe)
        search = cast("SearchModule", cli.model)
        selection = search.selection()
        search.save_adapter(folder.adapter("search"))
        selection.write(folder.selection)
        folder.finish("search", settings)
        write_report(folder.root, recipe.sections["report"]["title"])
    console = Console()
    console.print(gate_bars(selection))
    console.print(f"{chosen(selection)} chosen: {listing(selection)}")
    for line in stability_lines(selection):
        console.print(line, soft_wrap=True)
    console.print(f"written to {folder.selection}", soft_wrap=True)
    return 0


def _fit(cli: LightningCLI, recipe: Recipe) -> None:
    """Make all outer steps.

    Raises:
        FlexoraError: If the Trainer stopped before.
    """
    module = cast("SearchModule", cli.model)
    data = cli.datamodule.bilevel(
        module.outer_steps,
        module.inner_steps,
        module.batch_size,
        module.accumulate,
        module.validation_batches,
        module.repeats,
    )
    with plain_errors(recipe, "search"):
        cli.trainer.fit(module, datamodule=data)
    if module.outer_step < module.total_steps:
        raise FlexoraError(
            f"the trainer stopped after outer step {module.outer_step} of {module.total_steps}; remove what limits "
            "it from trainer or search.trainer (max_time, limit_train_batches, fast_dev_run)"
        )
