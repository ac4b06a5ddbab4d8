"""AdaLoRA (Zhang et al. 2023, arXiv:2303.10512) under Lightning: its steps, its budget after each, its extra loss.

PEFT leaves three things to whoever trains: to say how many steps there are, to call ``update_and_allocate`` after every
optimiser step, and to run the model's own forward pass, which adds the loss. We run decoder and head apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from flexora.errors import FlexoraError

if TYPE_CHECKING:
    from peft import AdaLoraConfig, PeftModel
    from peft.tuners.adalora.layer import RankAllocator

    from flexora.finetune.module import FinetuneModule

#: What the allocator has learnt of every weight's importance.
_MEMORY = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def orthogonality(model: PeftModel) -> Tensor:
    """The regulariser that PEFT adds to a loss: the mean of ``|P^T P - I|`` over all A and B, times its weight.

    Returns:
        A scalar, as in ``AdaLoraModel.forward``.
    """
    terms = []
    for name, parameter in model.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            square = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
            terms.append(torch.linalg.norm(square - torch.eye(len(square), out=torch.empty_like(square))))
    weight: float = _config(model).orth_reg_weight
    return weight * torch.stack(terms).mean()


def trim_ranks(model: PeftModel) -> None:
    """Have PEFT save the ranks that are left: those whose singular value is not zero.

    The last allocation says it too, but not for an earlier checkpoint, nor between two allocations.
    """
    _config(model).rank_pattern = {
        name.removeprefix("base_model.model."): (parameter != 0).flatten().tolist()
        for name, parameter in model.named_parameters()
        if "lora_E" in name
    }


class RankBudget(Callback):
    """Tells AdaLoRA the trainer's steps, and lowers its budget of ranks after each; resumes where it was."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Before the model is loaded.

        Raises:
            FlexoraError: If the precision scales the loss. A step whose gradients overflow is skipped then, but not by
                the allocator: its averages would hold NaN ever after.
        """
        if trainer.precision == "16-mixed":
            raise FlexoraError("trainer.precision: 16-mixed does not go with AdaLoraConfig; use bf16-mixed or 32-true")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the number of steps.

        Raises:
            FlexoraError: If they leave none to lower the budget in, or the budget is not to be lowered.
        """
        config = _config(_peft(pl_module))
        config.total_step = cast("FinetuneModule", pl_module).total_steps
        if config.tinit >= config.total_step - config.tfinal:
            raise FlexoraError(
                f"adapter.tinit: {config.tinit} and tfinal {config.tfinal} leave none of the trainer's "
                f"{config.total_step} steps to lower the ranks in; lower them, or train longer"
            )
        if config.target_r >= config.init_r:
            raise FlexoraError(
                f"adapter.target_r: {config.target_r} must be smaller than init_r {config.init_r}; or take LoraConfig"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from where a checkpoint left off."""
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """After an optimiser step, while its gradients are there: Lightning zeroes them before the next backward."""
        if trainer.global_step > self._steps:  # not while it accumulates
            self._steps = trainer.global_step
            cast("Any", _peft(pl_module).base_model).update_and_allocate(self._steps)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the allocator's memory and the last allocation."""
        allocator = _allocator(_peft(pl_module))
        memory = {name: dict(getattr(allocator, name)) for name in _MEMORY}
        checkpoint["adalora"] = memory | {"rank_pattern": _config(_peft(pl_module)).rank_pattern}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take both up again."""
        kept = dict(checkpoint["adalora"])
        model = _peft(pl_module)
        _config(model).rank_pattern = kept.pop("rank_pattern")
        places = dict(model.get_base_model().named_parameters())
        for name, tensors in kept.items():
            setattr(_allocator(model), name, {key: value.to(places[key].device) for key, value in tensors.items()})


def _peft(module: L.LightningModule) -> PeftModel:
    return cast("FinetuneModule", module).peft_model


def _config(model: PeftModel) -> AdaLoraConfig:
    return cast("AdaLoraConfig", model.peft_config["default"])


def _allocator(model: PeftModel) -> RankAllocator:
    return cast("Any", model.base_model).rankallocator
