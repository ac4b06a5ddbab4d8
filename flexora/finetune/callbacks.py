"""The checkpoints of a fine-tune, from which it goes on to the same bits at any optimiser step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, distributed

from flexora.agreement import require_same_step, written_by_first
from flexora.checkpoint import CheckpointFolder, step_of
from flexora.data.batching import LengthGroupedBatches
from flexora.errors import Interrupted

if TYPE_CHECKING:
    from flexora.finetune.module import FinetuneModule


class FinetuneFiles(Callback):
    """Writes checkpoints before optimiser steps, and keeps the best adapter by validation loss; without one, the last.

    They are Lightning's, of which it restores the adapter, AdamW, the schedule and its counters. Here comes what it
    leaves out: the place within the epoch, the running mean of its loss, and the best adapter. Rows and dropout masks
    are pure functions of seed and step, so there are no generators to save. While a step's gradients are gathered,
    neither adapter nor optimiser changes: on a signal the state at its start is still there to be written.

    Lightning resumes exactly from the start of a step alone. After the last one of an epoch it would leave out the
    validation, so there is a checkpoint before every step that a validation follows.

    Args:
        folder: The phase's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.checkpoints = CheckpointFolder(folder / "checkpoints")
        self.best: dict[str, Any] | None = None
        self._saved = 0
        self._start: dict[str, Any] | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def best_weights(self) -> dict[str, Tensor] | None:
        """The trained parameters after the epoch with the lowest validation loss; none before the first."""
        return None if self.best is None else self.best["weights"]

    @property
    def validated(self) -> bool:
        """Whether the best adapter was found by a validation loss; without any it is that of the last step."""
        return self.best is not None and self.best["val_loss"] is not None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Know how many to keep, and that all processes have found the same one.

        Raises:
            FlexoraError: If they have not.
        """
        self.checkpoints.keep = cast("FinetuneModule", pl_module).keep_checkpoints
        # Once more: Lightning was given it and keeps it to itself, and where some restore and others do not, all wait.
        found = self.checkpoints.newest(lambda _: None) if trainer.world_size > 1 else None
        require_same_step(trainer, step_of(found), self.checkpoints.folder)

    def state_dict(self) -> dict[str, Any]:
        """The best adapter is part of a checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.best = state_dict["best"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Say where the step began, whatever part of it is done."""
        if self._start is not None:
            checkpoint["loops"] = {"fit_loop": self._start["loop"]}
            means = _gathered(self._start["mean"], trainer.world_size)  # every process has its own
            checkpoint["step_start"] = {**self._start["counters"], "means": means.cpu()}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember what is restored later."""
        self._resumed = checkpoint.get("step_start")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on within the epoch: with its next batch, and the mean of its loss so far."""
        self._saved = trainer.global_step
        if self._resumed is None:
            return
        batches = getattr(trainer.train_dataloader, "batch_sampler", None)
        if isinstance(batches, LengthGroupedBatches):
            batches.start = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        mean = cast("FinetuneModule", pl_module).train_loss
        values = self._resumed["means"][trainer.global_rank].to(pl_module.device)
        mean.mean_value, mean.weight = values.unbind()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Before a step keep its place, and write a checkpoint where one is due."""
        loop = trainer.fit_loop.epoch_loop
        if self._resumed is not None:  # Lightning's counters are meant for resumes from a step's end
            loop._batches_that_stepped = self._resumed["batches_that_stepped"]
            loop.batch_progress.total.ready = self._resumed["ready"]
            self._resumed = None
        if batch_idx % trainer.accumulate_grad_batches:
            return
        module = cast("FinetuneModule", pl_module)
        mean = module.train_loss
        self._start = {
            "loop": trainer.fit_loop.state_dict(),
            "mean": torch.stack([mean.mean_value, mean.weight]),
            "counters": {
                "batches_that_stepped": loop._batches_that_stepped,
                "ready": loop.batch_progress.total.ready,
            },
        }
        due = trainer.global_step % module.checkpoint_every == 0
        last = trainer.global_step + 1 == trainer.max_steps
        if due or batch_idx == 0 or last or _is_validated(trainer, batch_idx):
            self._write(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """Forget the step's start once the step is made: until the next one there is nothing to go on from."""
        if not trainer.fit_loop._should_accumulate():
            self._start = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the adapter if it is the best so far; one whose loss is not a number only if there is no other."""
        if trainer.sanity_checking or _is_trial(trainer) or "val_loss" not in trainer.callback_metrics:
            return
        loss = float(trainer.callback_metrics["val_loss"])
        loss = math.inf if math.isnan(loss) else loss
        if self.best is None or loss < self.best["val_loss"]:
            self._keep(trainer, pl_module, loss)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the last adapter where nothing could be validated: all of the training would be lost."""
        if self.best is None and not _is_trial(trainer):
            self._keep(trainer, pl_module, None)

    def _keep(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: float | None) -> None:
        weights = cast("FinetuneModule", pl_module).trained(trainer.strategy.lightning_module_state_dict())
        kept = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}
        self.best = {"val_loss": loss, "weights": kept}

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write the state at the start of the step that a signal broke off."""
        if isinstance(exception, Interrupted | SIGTERMException) and self._start is not None:
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        """Write a checkpoint, unless the step has one, or nothing was done yet."""
        if trainer.global_step == self._saved or _is_trial(trainer):
            return
        # Trainer.save_checkpoint would stage the file in $TMPDIR, and sync neither it nor its folder.
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        written_by_first(trainer, lambda: self.checkpoints.write(trainer.global_step, checkpoint))
        self._saved = trainer.global_step


def _gathered(tensor: Tensor, world_size: int) -> Tensor:
    """The tensors of all processes, ``[world_size, ...]``."""
    if world_size == 1:
        return tensor[None]
    parts = [torch.empty_like(tensor) for _ in range(world_size)]
    distributed.all_gather(parts, tensor)
    return torch.stack(parts)


def _is_trial(trainer: L.Trainer) -> bool:
    """Whether the trainer only tries whether everything runs."""
    return bool(getattr(trainer, "fast_dev_run", False))


def _is_validated(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether the step that begins with a batch of the epoch is its last one, or has a validation in it or after it."""
    end = min(batch_idx + trainer.accumulate_grad_batches, int(trainer.num_training_batches))
    every = trainer.val_check_batch or math.inf
    return end == trainer.num_training_batches or end // every > batch_idx // every
