"""Stop the fine-tune before a step whose loss or gradients are not finite, or leave it out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.callbacks import Callback

from flexora.data.datamodule import AnswerDataModule
from flexora.finite import NonFiniteError, leave_out, require_finite

if TYPE_CHECKING:
    import lightning as L
    from torch import Tensor

    from flexora.finetune.module import FinetuneModule


class FiniteSteps(Callback):
    """Looks at each optimiser step's losses and gradients once, before they are clipped.

    Where the precision scales the loss (``16-mixed``), gradients that overflow are the scaler's: it leaves the step out
    by itself and lowers its scale. What is not finite at a scale of 1 no scale can mend, nor a loss.

    Args:
        allowed: How many steps may be left out; one more stops the training.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.skipped = 0

    def state_dict(self) -> dict[str, Any]:
        """The count is part of a checkpoint."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = state_dict["skipped"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget losses of steps that are no part of the training: Lightning's LearningRateFinder makes some before."""
        cast("FinetuneModule", pl_module).step_losses = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Check the step; one that is left out has no gradients, so that AdamW leaves weights and moments alone.

        Raises:
            FlexoraError: If the step is not finite and may not be left out.
        """
        module = cast("FinetuneModule", pl_module)
        seen, module.step_losses = module.step_losses, []
        values = torch.stack([loss for loss, _ in seen])
        joint = float(cast("Tensor", trainer.strategy.reduce(values.sum(), reduce_op="sum")))
        losses = [(value, rows) for value, (_, rows) in zip(values.tolist(), seen, strict=True)]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scaled = scaler is not None and scaler.get_scale() > 1.0
        named = {name: p.grad for name, p in module.peft_model.named_parameters() if p.grad is not None and not scaled}
        try:
            require_finite(joint, losses, list(named.values()), named, trainer.world_size)
        except NonFiniteError as error:
            data, told = getattr(trainer, "datamodule", None), error.what
            if isinstance(data, AnswerDataModule):
                told = error.told(data.train_set, data.unit)
            place = f"finetune: step {trainer.global_step + 1} (epoch {trainer.current_epoch + 1})"
            word = leave_out(place, told, self.skipped + 1, self.allowed, "finetune.learning_rate")
            self.skipped += 1
            trainer.print(word)
            optimizer.zero_grad(set_to_none=True)
