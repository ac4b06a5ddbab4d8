"""What the search leaves on disk while it runs: history and checkpoints, and how it starts again from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from flexora.agreement import require_same_step, written_by_first
from flexora.checkpoint import CheckpointFolder, read_checkpoint, step_of
from flexora.data.bilevel import BilevelDataModule
from flexora.errors import FlexoraError, Interrupted
from flexora.search.history import write_history
from flexora.search.state import restore, snapshot, to_file

if TYPE_CHECKING:
    from flexora.search.module import SearchModule


class SearchFiles(Callback):
    """Writes ``history.csv`` and checkpoints, and resumes from the newest of these.

    Lightning's ModelCheckpoint counts optimiser steps, which misses saves in manual optimisation, and its loops would
    have to be fast-forwarded. Here every outer step is a pure function of its number, so the state of the module is
    all there is to keep. A signal may come within a step: then the state before that step is written, and it is done
    again.

    Args:
        folder: The search's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = CheckpointFolder(folder / "checkpoints")
        self._read: dict[str, Any] | None = None
        self._before: dict[str, Any] | None = None
        self._made = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the newest checkpoint: its number of steps is needed before the loader exists.

        Raises:
            FlexoraError: If it was made on another number of devices: each step's rows would be others.
        """
        self.checkpoints.keep = cast("SearchModule", pl_module).keep_checkpoints
        newest = self.checkpoints.newest(trainer.print)
        require_same_step(trainer, step_of(newest), self.checkpoints.folder)
        if newest is None:
            return
        self._read = read_checkpoint(newest)
        devices = self._read["world_size"]
        if devices != trainer.world_size:
            raise FlexoraError(
                f"search: {newest} was made on {devices} devices, but the trainer has {trainer.world_size}; "
                "continue on as many, or choose another output_dir"
            )
        data = getattr(trainer, "datamodule", None)
        assert isinstance(data, BilevelDataModule)
        data.steps.start = len(self._read["history"])
        trainer.print(f"search: continuing after outer step {data.steps.start} of {data.steps.total}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue where the newest checkpoint ends, now that the optimiser exists."""
        if self._read is not None:
            restore(cast("SearchModule", pl_module), self._read)
            self._read = None

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over a complete checkpoint: it leaves no step to make, and then Lightning never starts to train."""
        self.on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Keep the state before the outer step, for a signal within it; the first process alone writes it."""
        module = cast("SearchModule", pl_module)
        self._made = module.outer_step
        self._before = snapshot(module) if trainer.is_global_zero else None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Keep the history up to date, and the state every few steps."""
        module = cast("SearchModule", pl_module)
        if is_last := module.outer_step == module.total_steps:
            self._before, self._made = None, 0  # a signal that comes now breaks nothing off
        is_due = module.outer_step % module.checkpoint_every == 0 or is_last

        def write() -> None:
            write_history(self.folder / "history.csv", module.history, module.units)
            if is_due:
                self.checkpoints.write(module.outer_step, to_file(snapshot(module)))

        written_by_first(trainer, write)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the state before the step that a signal broke off."""
        # Not before the first step; all wait: Lightning kills all processes soon after the first has left.
        if isinstance(exception, Interrupted | SIGTERMException) and self._made:
            written_by_first(trainer, self._write_before)

    def _write_before(self) -> None:
        assert self._before is not None, "the first process keeps it"
        self.checkpoints.write(self._made, to_file(self._before))
