"""The fine-tune as a LightningModule: an adapter on the chosen layers alone, automatic optimisation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from peft import AdaLoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import get_cosine_schedule_with_warmup

from flexora.backbone.adapters import attach
from flexora.backbone.limits import require_trainer
from flexora.backbone.loading import Backbone, describe
from flexora.backbone.methods import require_modules
from flexora.data.batch import terms
from flexora.data.bilevel import BilevelDataModule
from flexora.errors import FlexoraError, require_at_least
from flexora.finetune.adalora import RankBudget, orthogonality, trim_ranks
from flexora.finetune.guard import FiniteSteps
from flexora.finetune.initialization import (
    moves_base,
    needs_rows,
    require_initialization,
    save_converted,
    start_from_rows,
)
from flexora.finetune.last_step import ValidateLastStep
from flexora.finetune.prefix import PrefixCache, require_one_device
from flexora.finetune.sharding import require_shardable, shard
from flexora.finetune.warm_start import fill, read_start, require_lora
from flexora.randomness import seeded, step_seed
from flexora.scoring.likelihood import answer_loss
from flexora.search.named import resolve_selection
from flexora.search.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from torch.utils.data import DataLoader

    from flexora.data.batch import Batch


class FinetuneModule(L.LightningModule):
    """Trains an adapter on the chosen layers with AdamW, warm-up and a cosine schedule.

    It runs on one device; on several under DDP; or with ``fsdp2``, where each holds a part of the decoder layers.

    Args:
        backbone: The base model.
        adapter: A configuration of PEFT: LoRA as in the search, or any method that adapts linear modules by name.
            ``target_modules`` takes short names or ``all-linear``; without them a selection's file says which.
            AdaLoRA's ``total_step`` is replaced by the trainer's steps.
        selection: What a search has chosen (``SearchModule.selection()``), or a ``selection.json``,
            ``zoo:MODEL/BENCHMARK``, ``hf:USER/NAME``, ``all``, or layers such as ``0,3,5-9``.
        learning_rate: Peak learning rate.
        weight_decay: Decoupled weight decay.
        warmup_ratio: Share of the steps over which the learning rate rises.
        prefix_cache: GiB of the machine's memory for what the layers below the lowest chosen one make of each row, so
            that they are computed in the first epoch alone; 0 computes them always. It pays from the second epoch on,
            the more the higher the lowest chosen layer lies, and needs room for all rows. On one device.
        compile: Compile the decoder layers with ``torch.compile``, but for those that the cache serves: about a minute
            at the start, then faster steps.
        initial_adapter: A PEFT folder whose weights of the chosen modules are the start, as
            :meth:`SearchModule.save_adapter` writes it; LoRA starts fresh by default, as in the paper. Recipes fill it
            in where ``finetune.warm_start`` asks for it.
        checkpoint_every: Optimiser steps between two checkpoints; there are some around every validation, too.
        keep_checkpoints: How many of the newest are kept: an older one is used where a newer one is damaged.
        skip_non_finite: Optimiser steps that may be left out because a loss or a gradient is infinite or not a number;
            the learning rate's schedule goes on. One more stops the training.
        seed: Seed of the adapter's initial weights and of dropout. Recipes fill it in from their own section.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: PeftConfig,
        selection: str | Path | Selection = "all",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_ratio: float = 0.1,
        prefix_cache: float = 0.0,
        compile: bool = False,
        initial_adapter: str | None = None,
        checkpoint_every: int = 50,
        keep_checkpoints: int = 2,
        skip_non_finite: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise FlexoraError(f"finetune.learning_rate: {learning_rate} must be positive")
        if not 0 <= warmup_ratio < 1:
            raise FlexoraError(f"finetune.warmup_ratio: {warmup_ratio} must lie in [0, 1)")
        if not prefix_cache >= 0:
            raise FlexoraError(f"finetune.prefix_cache: {prefix_cache} GiB is less than nothing; give 0 or more")
        counts: dict[str, int | None] = {"checkpoint_every": checkpoint_every, "keep_checkpoints": keep_checkpoints}
        require_at_least(1, "finetune", counts)
        require_at_least(0, "finetune", {"skip_non_finite": skip_non_finite})
        if skip_non_finite and isinstance(adapter, AdaLoraConfig):
            raise FlexoraError(
                "finetune.skip_non_finite: AdaLoraConfig learns which ranks matter from every step; set it to 0"
            )
        if initial_adapter is not None:
            require_lora(adapter)
        require_modules(adapter)
        require_initialization(adapter, backbone)
        self.strict_loading = False  # the frozen base model is in no checkpoint
        self.backbone = backbone
        self.adapter = adapter
        self.selection = selection
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.warmup_ratio = warmup_ratio
        self.prefix_cache = prefix_cache
        self.compiled = compile
        self.initial_adapter = initial_adapter
        self.checkpoint_every = checkpoint_every
        self.keep_checkpoints = keep_checkpoints
        self.skip_non_finite = skip_non_finite
        self.seed = seed
        self.model: PeftModel | None = None
        self.step_losses: list[tuple[Tensor, Tensor]] = []  # of each micro-batch so far, and its rows
        self.train_loss = MeanMetric(nan_strategy="ignore")  # of steps that are left out
        self.val_loss = MeanMetric()

    def configure_model(self) -> None:
        """Load the base model, put an adapter on the chosen layers, and shard them under ``fsdp2``.

        Raises:
            FlexoraError: If the selection or the start does not fit the model, or the model cannot be sharded.
        """
        if self.model is not None:
            return
        if self.device_mesh is not None:
            require_shardable(self.adapter, self.backbone)
        config = describe(self.backbone.load_config())
        wanted = getattr(self.adapter, "target_modules", None)
        # Selection and start are checked before the base model's weights are read.
        selection = resolve_selection(self.selection, config.name, config.num_layers, wanted)
        start = None if self.initial_adapter is None else read_start(Path(self.initial_adapter), self.adapter)
        torch.manual_seed(self.seed)
        self.model = attach(self.backbone.load_model(), self.adapter, selection, config.family)
        if start is not None:
            fill(self.model, start, str(self.initial_adapter))
        if needs_rows(self.adapter):
            self._start_from_rows(self.model)
        if moves_base(self.adapter):  # made again when a checkpoint is resumed: it holds no base weights
            self._start = {k: v.detach().cpu().clone() for k, v in get_peft_model_state_dict(self.model).items()}
        self.prefix = PrefixCache(self.model, int(self.prefix_cache * 2**30))
        if self.compiled:
            for layer in self.model.get_base_model().get_submodule(config.family.layers):
                if layer not in self.prefix.layers:  # their forward is another one where the cache serves them
                    layer.compile(dynamic=True)  # one by one: they share their code
        if self.device_mesh is not None:
            shard(self.model, config.family, self.device_mesh["data_parallel"])

    def _start_from_rows(self, model: PeftModel) -> None:
        """Have the first batches of the fit decide where the adapter starts.

        Raises:
            FlexoraError: If there is no fit.
        """
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            raise FlexoraError("adapter.init_lora_weights: eva starts from training rows; call Trainer.fit first")
        if self.trainer.world_size > 1:
            raise FlexoraError(
                "adapter.init_lora_weights: eva would start from other rows on each device; fine-tune on one"
            )
        self.trainer.fit_loop.setup_data()
        model.to(self.trainer.strategy.root_device)
        start_from_rows(model, cast("DataLoader[Batch]", self.trainer.train_dataloader))

    def configure_callbacks(self) -> list[Callback]:
        """What looks at each step before it is made and at the last one, and what the adapter's method does between."""
        budget = [RankBudget()] if isinstance(self.adapter, AdaLoraConfig) else []
        return [FiniteSteps(self.skip_non_finite), *budget, ValidateLastStep()]

    @property
    def peft_model(self) -> PeftModel:
        """The model with its adapter; exists once ``configure_model`` has run."""
        assert self.model is not None, "configure_model has not run yet"
        return self.model

    def setup(self, stage: str) -> None:
        """Refuse precisions that would round the adapter, and strategies and batches that cannot be followed.

        Raises:
            FlexoraError: If there is one of these.
        """
        require_trainer(self.trainer, "finetune", self.backbone.dtype)
        if isinstance(getattr(self.trainer, "datamodule", None), BilevelDataModule):
            raise FlexoraError(
                "finetune: data.bilevel(...) makes the outer steps of a search; give the Trainer the benchmark itself"
            )
        if self.model is not None:
            self.prefix.forget()
        if self.prefix_cache:
            require_one_device(self.trainer.world_size)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole fit.

        Raises:
            FlexoraError: If neither epochs nor steps are limited.
        """
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise FlexoraError(
                "finetune: a schedule needs a length, which max_time does not say; give the Trainer max_epochs or "
                "max_steps"
            )
        return int(steps)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on the adapter, warm-up and cosine over all optimiser steps."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        fused = may_fuse(parameters[0].device.type, self.trainer.gradient_clip_val, str(self.trainer.precision))
        optimizer = torch.optim.AdamW(
            parameters,
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            fused=fused or None,  # False would switch foreach off, too, torch's own choice on CUDA
        )
        steps = self.total_steps
        schedule = get_cosine_schedule_with_warmup(optimizer, round(self.warmup_ratio * steps), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The batch's share of the step's mean loss per answer token, or per question where choices are contrasted.

        Lightning averages over accumulated batches and devices; the factor turns that into the sum over all of them
        divided by their joint number of tokens, so that batches with few answer tokens do not count for more.
        Dropout's masks depend on the seed, the step and the batch's place in it alone.
        """
        accumulate, processes = self.trainer.accumulate_grad_batches, self.trainer.world_size
        place = batch_idx % accumulate * processes + self.trainer.global_rank  # among all batches of the step
        with (
            seeded(step_seed(self.seed, self.global_step, place + 1), self.device),
            self.prefix.serving(batch, "train"),
        ):
            loss_sum = answer_loss(self.peft_model, batch)
        parts = accumulate * processes
        loss = loss_sum.detach() / terms(batch)
        self.step_losses.append((loss, batch["rows"]))
        self.log("train_loss", loss, prog_bar=True)
        self.train_loss.update(torch.where(loss.isfinite(), loss, torch.nan), weight=terms(batch))
        self.log("train_loss_of_epoch", self.train_loss, on_step=False, on_epoch=True)
        if isinstance(self.adapter, AdaLoraConfig):  # weighted like the rest: once a step, however many batches it has
            loss_sum = loss_sum + terms(batch) * orthogonality(self.peft_model)
        return loss_sum / batch["normalizer"] * parts

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Mean loss of the held-out rows, per answer token or per question."""
        count = terms(batch)
        weight = 0 if math.isinf(batch["normalizer"]) else count  # another process's rows, for company
        with self.prefix.serving(batch, "validation"):
            loss_sum = answer_loss(self.peft_model, batch)
        self.val_loss.update(loss_sum / count, weight=weight)
        self.log("val_loss", self.val_loss, prog_bar=True, batch_size=count)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter alone: the frozen base model can be loaded again."""
        checkpoint["state_dict"] = self.trained(checkpoint["state_dict"])

    def trained(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The trained ones among the parameters of a ``state_dict``."""
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: tensor for name, tensor in state_dict.items() if name in names}

    def save_adapter(self, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write the adapter as a plain PEFT folder: on the untouched base it gives the same logits as here.

        Args:
            folder: The folder.
            weights: ``state_dict`` of a checkpoint, the trained parameters, which the module takes over before; those
                that it has by default. AdaLoRA's ranks are ``target_r`` on average only after the last steps: those of
                an earlier checkpoint may be more.

        Raises:
            FlexoraError: If weights are not given under ``fsdp2``, where a device holds a part of them.
        """
        model = self.peft_model
        trained = {name.removeprefix("model."): tensor for name, tensor in (weights or {}).items()}
        if self.device_mesh is not None:  # a device has no whole parameters to take them over, nor to write
            if weights is None:
                raise FlexoraError("save_adapter: fsdp2 has sharded the adapter; give weights of a checkpoint")
            model.save_pretrained(str(folder), state_dict=model.state_dict() | trained)
            return
        model.load_state_dict(trained, strict=False)
        if moves_base(self.adapter):
            save_converted(model, self._start, Path(folder))
            return
        if isinstance(self.adapter, AdaLoraConfig):
            trim_ranks(model)
        model.save_pretrained(str(folder))


def may_fuse(device: str, clip: float | None, precision: str) -> bool:
    """Whether AdamW may run as one kernel: on CUDA, unless mixed precision clips, which Lightning then refuses.

    Nor in ``16-mixed``: Lightning leaves a fused optimiser's gradients scaled, and where a step is left out, and so has
    none, the scaler fails.
    """
    return device == "cuda" and precision != "16-mixed" and not (clip is not None and "mixed" in precision)
