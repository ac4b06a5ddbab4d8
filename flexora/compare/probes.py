"""Probes: selectors that score each layer by a look at the model on training rows.

They run as Lightning runs a fine-tune, on the recipe's device and in its precision. LoRA's dropout is off while they
measure, and padding is not counted. Some train the task's module, so each needs one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.callbacks import Callback
from peft import PeftType
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flexora.backbone.families import family_of
from flexora.compare.selectors import Scored, Task
from flexora.data.batch import PADDING, Batch
from flexora.errors import FlexoraError, require_at_least
from flexora.search.gates import ADAPTER

if TYPE_CHECKING:
    import lightning as L

    from flexora.data.datamodule import AnswerDataModule
    from flexora.finetune.module import FinetuneModule

#: What is measured of a module's input and output, ``[rows, length, *]`` each: ``[rows, length]``.
Measure = Callable[[Tensor, Tensor], Tensor]


class _Probe(Scored):
    """Looks at a number of batches of training rows, of ``data.batch_size`` rows each.

    Args:
        k: The number of layers to choose.
        like: The arm whose number it takes instead.
        batches: How many batches; fewer where there are no more.
    """

    def __init__(self, k: int | None = None, like: str | None = None, batches: int = 8) -> None:
        super().__init__(k, like)
        require_at_least(1, f"compare: {type(self).__name__}", {"batches": batches})
        self.batches = batches


class GradientNorm(_Probe):
    """Norm of the gradient of a layer's adapter at its start, of the mean answer loss of the batches.

    LoRA starts with B = 0. The gradient of A is zero then, and that of B is ``dL/dB = s dL/dW A^T`` with LoRA's scaling
    s: what the weights' own gradient is in r random directions. Squares are summed over the layer's projections. The
    weights themselves may be quantised, as none of their gradients is made.
    """

    def scores(self, task: Task) -> Sequence[float]:
        """The norms, ``[n]``, in nats."""
        module, data = _subject(task)
        gradient = _FirstGradient()
        trainer = task.new_trainer(
            max_steps=1, accumulate_grad_batches=self.batches, limit_val_batches=0, callbacks=[gradient]
        )
        trainer.fit(module, datamodule=data)
        return gradient.norms


class ActivationNorm(_Probe):
    """How much a layer of the base model changes the residual stream: mean of ``|layer(x) - x| / |x|`` over tokens."""

    def scores(self, task: Task) -> Sequence[float]:
        """The relative changes, ``[n]``."""
        module, _ = _subject(task)
        module.configure_model()
        sites = [(layer, block, _relative_change) for layer, block in enumerate(_layers(module))]
        return _token_means(task, self.batches, sites)


class LoraDrop(_Probe):
    """Mean over tokens of ``|s B A x|^2``, summed over a layer's projections, after a short warm-up of LoRA on all.

    The score of LoRA-drop (Zhou et al. 2024, arXiv:2402.07721): what each LoRA puts out, with LoRA's scaling s. The
    layers that are not chosen have no adapter here; the paper has them share one.

    Args:
        k: The number of layers to choose.
        like: The arm whose number it takes instead.
        batches: How many batches are measured; fewer where there are no more.
        steps: Optimiser steps of the warm-up, with the fine-tune's optimiser and a schedule of that length.
    """

    def __init__(self, k: int | None = None, like: str | None = None, batches: int = 8, steps: int = 20) -> None:
        super().__init__(k, like, batches)
        require_at_least(1, f"compare: {type(self).__name__}", {"steps": steps})
        self.steps = steps

    def scores(self, task: Task) -> Sequence[float]:
        """The mean squared outputs, ``[n]``.

        Raises:
            FlexoraError: If the adapter is not LoRA.
        """
        module, data = _subject(task)
        if module.adapter.peft_type != PeftType.LORA:
            kind = type(module.adapter).__name__
            raise FlexoraError(f"compare: LoraDrop measures LoRA, but the adapter is {kind}; make it LoraConfig")
        task.new_trainer(max_steps=self.steps, limit_val_batches=0).fit(module, datamodule=data)
        sites = [
            (layer, part.lora_B[ADAPTER], _squared(part.scaling[ADAPTER]))
            for layer, block in enumerate(_layers(module))
            for part in block.modules()
            if isinstance(part, LoraLayer)
        ]
        return _token_means(task, self.batches, sites)


class _FirstGradient(Callback):
    """Keeps the norm of each layer's gradient in the first optimiser step."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Turn dropout off; the rest stays in training mode, in which alone a checkpointed layer recomputes."""
        for part in pl_module.modules():
            if isinstance(part, nn.Dropout):
                part.eval()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: object) -> None:
        """Gradients are accumulated and unscaled here."""
        gradients = [[p.grad for p in layer.parameters() if p.grad is not None] for layer in _layers(pl_module)]
        self.norms = [float(nn.utils.get_total_norm(layer)) for layer in gradients]


class _TokenMeans(Callback):
    """Sums values of tokens, layer by layer; padding is left out."""

    def __init__(self, num_layers: int) -> None:
        self.sums = [0.0] * num_layers
        self.tokens = 0

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Find the tokens of the batch that comes."""
        self.real = batch["segments"] != PADDING
        self.tokens += int(self.real.sum())

    def hook(self, layer: int, measure: Measure) -> Callable[..., None]:
        """A forward hook that adds what is measured."""

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            wide = torch.promote_types(output.dtype, torch.float32)  # half precision would round and overflow
            self.sums[layer] += float(measure(inputs[0].to(wide), output.to(wide))[self.real].sum())

        return add


def _token_means(task: Task, batches: int, sites: Sequence[tuple[int, nn.Module, Measure]]) -> list[float]:
    """Means over the tokens of so many batches of training rows, ``[n]``.

    Args:
        task: Module, rows and trainer.
        batches: How many batches.
        sites: Layer, module, and what is measured of its input and output; a layer's sites are added up.
    """
    module, data = _subject(task)
    means = _TokenMeans(task.num_layers)
    trainer = task.new_trainer(limit_val_batches=batches, callbacks=[means])
    with ExitStack() as hooks:
        for layer, part, measure in sites:
            hooks.enter_context(part.register_forward_hook(means.hook(layer, measure)))
        trainer.validate(module, data.train_dataloader(), verbose=False)
    return [total / means.tokens for total in means.sums]


def _relative_change(before: Tensor, after: Tensor) -> Tensor:
    ratio: Tensor = torch.linalg.vector_norm(after - before, dim=-1) / torch.linalg.vector_norm(before, dim=-1)
    return ratio


def _squared(scaling: float) -> Measure:
    """The squared norm of what LoRA adds, from the output of B."""
    return lambda _, output: (scaling * output).square().sum(dim=-1)


def _layers(module: Any) -> nn.ModuleList:
    """The decoder layers of a fine-tune's model."""
    base = module.peft_model.get_base_model()
    return cast("nn.ModuleList", base.get_submodule(family_of(type(base).__name__).layers))


def _subject(task: Task) -> tuple[FinetuneModule, AnswerDataModule]:
    """What a selector that looks is given."""
    assert task.module is not None, "the task has no module"
    assert task.data is not None, "the task has no data"
    return task.module, task.data
