"""Have the adapter after the last step validated, wherever training ends."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    import lightning as L


class ValidateLastStep(Callback):
    """Asks for a validation after the last step, where Lightning by itself would have none.

    That is so where ``max_steps`` ends within an epoch, or ``check_val_every_n_epoch`` leaves the last one out: what
    was trained since the last validation, or all of it, could not be chosen. The loop's own validation is asked for, in
    its place after the step, so that processes, metrics and other callbacks meet it as any other. A callback of the
    module, it comes after the trainer's own, and knows whether one of them has just ended the training.
    """

    def __init__(self) -> None:
        self._usual: dict[str, Any] | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Once the last step is made, let the trainer's settings say that this batch is validated."""
        if not _ends(trainer):
            return
        wanted = {"check_val_every_n_epoch": 1, "val_check_batch": batch_idx + 1, "_val_check_time_interval": None}
        self._usual = {name: getattr(trainer, name) for name in wanted if hasattr(trainer, name)}
        for name in self._usual:  # the last one is private, and may go
            setattr(trainer, name, wanted[name])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the trainer its settings back, for another fit."""
        for name, value in (self._usual or {}).items():
            setattr(trainer, name, value)
        self._usual = None


def _ends(trainer: L.Trainer) -> bool:
    """Whether training ends with the batch that is just done."""
    loop = trainer.fit_loop
    if trainer.should_stop and loop._can_stop_early:
        return True
    if trainer.global_step >= (math.inf if trainer.max_steps == -1 else trainer.max_steps):
        return True
    last = trainer.current_epoch + 1 == trainer.max_epochs
    return last and loop.epoch_loop.batch_progress.is_last_batch
