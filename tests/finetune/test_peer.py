"""The fine-tune beside its peer, Hugging Face's Trainer with PEFT: the same rows in the same order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from flexora.backbone.loading import Backbone
from flexora.data.arc import ArcEasy
from flexora.data.batching import MicroBatch
from flexora.finetune.module import FinetuneModule
from tests.search.bilevel import in_float64
from tests.tiny import PAPER

STEPS, ROWS, WARMUP = 20, 2, 4


class Losses(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.kept: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.kept.append(float(trainer.callback_metrics["train_loss"]))


class LossTrainer(Trainer):
    """Keeps the loss of every step: the log rounds it."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        self.kept = [*getattr(self, "kept", []), loss.item()]
        return loss


def exact_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
    """Transformers' loss of a causal model, in the precision of its logits."""
    logits = outputs["logits"][:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum") / num_items_in_batch


def ours(module: FinetuneModule, data: ArcEasy, folder: Path) -> list[float]:
    rows = data.training_rows(data.train_set, "answer")
    batches = [MicroBatch(list(range(start, start + ROWS)), 0) for start in range(0, STEPS * ROWS, ROWS)]
    loader = DataLoader(rows, batch_sampler=batches, collate_fn=lambda batch: batch)  # type: ignore[arg-type]
    losses = Losses()
    trainer = L.Trainer(
        accelerator="cpu",
        precision="64-true" if module.backbone.dtype == "float64" else "32-true",
        max_epochs=1,
        gradient_clip_val=1.0,
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, loader)
    return losses.kept


def theirs(model: PeftModel, data: ArcEasy, folder: Path) -> list[float]:
    rows = []
    for row in data.train_set.select(range(STEPS * ROWS)):
        ids, start = row["sequences"][row["answer"]], row["starts"][row["answer"]]
        rows.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    settings = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        num_train_epochs=1,
        per_device_train_batch_size=ROWS,
        train_sampling_strategy="sequential",
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        warmup_steps=WARMUP,
        max_grad_norm=1.0,
        optim="adamw_torch",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    collator = DataCollatorForSeq2Seq(data.tokenizer)
    double = data.backbone.dtype == "float64"  # transformers' own loss rounds the logits to float32
    trainer = LossTrainer(
        model, settings, train_dataset=rows, data_collator=collator, compute_loss_func=exact_loss if double else None
    )
    trainer.train()
    return trainer.kept


@pytest.mark.parametrize(
    ("dtype", "family", "loss_error", "adapter_error"),
    [*(("float32", family, 1e-4, 1e-3) for family in (*PAPER, "gemma3")), ("float64", "llama", 1e-8, 1e-8)],
)
def test_the_loss_curve_is_that_of_the_trainer_with_peft(
    tiny_models: dict[str, Path],
    benchmark_folder: Path,
    tmp_path: Path,
    dtype: Any,
    family: str,
    loss_error: float,
    adapter_error: float,
) -> None:
    backbone, adapter = Backbone(str(tiny_models[family]), dtype=dtype), LoraConfig(r=4, lora_alpha=8)
    data = ArcEasy(backbone, str(benchmark_folder), validation_rows=2, max_length=64)
    module = FinetuneModule(backbone, adapter, "1-3", learning_rate=1e-2, warmup_ratio=WARMUP / STEPS)
    module.configure_model()
    wanted = {f"model.layers.{layer}.self_attn.{name}" for layer in (1, 2, 3) for name in ("q_proj", "v_proj")}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=wanted, task_type="CAUSAL_LM")
    peer = get_peft_model(backbone.load_model(), config)
    if dtype == "float64":
        in_float64(module.peft_model)
        in_float64(peer)
    peer.load_state_dict(module.peft_model.state_dict())

    found, expected = ours(module, data, tmp_path), theirs(peer, data, tmp_path)
    assert len(found) == len(expected) == STEPS
    assert expected[-1] < expected[0] - 0.1  # something is learnt
    assert found == pytest.approx(expected, abs=loss_error)

    def adapter_of(model: PeftModel) -> Tensor:
        state = get_peft_model_state_dict(model)
        return torch.cat([state[name].flatten().double() for name in sorted(state)])

    reference = adapter_of(peer)
    assert float((adapter_of(module.peft_model) - reference).norm() / reference.norm()) < adapter_error
