"""What the search leaves on disk while it runs: history and checkpoints, and how it starts again from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from flexora.checkpoint import read_checkpoint, write_checkpoint
from flexora.data.bilevel import BilevelDataModule
from flexora.errors import FlexoraError
from flexora.search.history import write_history
from flexora.search.state import restore, snapshot

if TYPE_CHECKING:
    from flexora.search.module import SearchModule


class SearchFiles(Callback):
    """Writes ``history.csv`` and ``checkpoints/last.pt``, and resumes from the latter.

    Lightning's ModelCheckpoint counts optimiser steps, which misses saves in manual optimisation, and its loops would
    have to be fast-forwarded. Here every outer step is a pure function of its number, so the state of the module is
    all there is to keep.

    Args:
        folder: The search's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._snapshot: dict[str, Any] | None = None

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "checkpoints" / "last.pt"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the newest checkpoint: its number of steps is needed before the loader exists.

        Raises:
            FlexoraError: If it was made on another number of devices: each step's rows would be others.
        """
        if not self.checkpoint.is_file():
            return
        self._snapshot = read_checkpoint(self.checkpoint)
        devices = self._snapshot["world_size"]
        if devices != trainer.world_size:
            raise FlexoraError(
                f"search: {self.checkpoint} was made on {devices} devices, but the trainer has {trainer.world_size}; "
                "continue on as many, or choose another output_dir"
            )
        data = getattr(trainer, "datamodule", None)
        assert isinstance(data, BilevelDataModule)
        data.steps.start = len(self._snapshot["history"])
        trainer.print(f"search: continuing after outer step {data.steps.start} of {data.steps.total}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue where the newest checkpoint ends, now that the optimiser exists."""
        if self._snapshot is not None:
            restore(cast("SearchModule", pl_module), self._snapshot)
            self._snapshot = None

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over a complete checkpoint: it leaves no step to make, and then Lightning never starts to train."""
        self.on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Keep the history up to date, and the state every few steps."""
        if not trainer.is_global_zero:
            return
        module = cast("SearchModule", pl_module)
        write_history(self.folder / "history.csv", module.history, module.units)
        if module.outer_step % module.checkpoint_every == 0 or module.outer_step == module.total_steps:
            self._save(module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Keep the state when SIGTERM ends the search: Lightning heeds it between outer steps only."""
        module = cast("SearchModule", pl_module)
        if isinstance(exception, SIGTERMException) and module.history and trainer.is_global_zero:
            self._save(module)

    def _save(self, module: SearchModule) -> None:
        write_checkpoint(self.checkpoint, snapshot(module))
