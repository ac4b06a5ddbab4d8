"""Time and memory of the fine-tune: beside Hugging Face's Trainer with PEFT, and by the lowest chosen layer.

``python -m tests.benchmarks.finetune_step`` after ``flexora fetch demo``. All arms make one epoch over the same rows,
with the same model, LoRA, precision, optimiser and number of rows a step. The Trainer is used the usual way, with
labels of -100 on the prompt and batches padded to their longest row: in random order, its default, and grouped by
length. flexora groups by length, and runs the head on answer tokens alone. Times are given for 1,000 tokens of rows,
padding not counted; memory is that of a step of the longest rows. The floor is the time of the bare matrix products
with the frozen weights of the decoder: forward, and backward to their inputs.

``--by-layer`` fine-tunes the layers from each of several upwards, for two epochs with a cache of the frozen prefix.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from peft import LoraConfig, PeftModel
from rich.console import Console
from rich.table import Table
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainerCallback, TrainingArguments

import flexora
from flexora import Backbone, FinetuneModule
from flexora.data.batching import LengthGroupedBatches
from flexora.data.datamodule import AnswerDataModule, loader
from flexora.data.rows import EncodedRows
from tests.benchmarks.hypergradient import peak_bytes

ADAPTER = LoraConfig(r=8, lora_alpha=16)
#: Rows of a step.
ROWS = 16
QUIET = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
CPU = torch.device("cpu")


class Stopwatch(Callback, TrainerCallback):
    """Seconds of each epoch of training, for either Trainer."""

    def __init__(self) -> None:
        self.started = 0.0
        self.epochs: list[float] = []

    def on_train_epoch_start(self, *args: Any, **kwargs: Any) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.epochs.append(time.perf_counter() - self.started)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Both have one, with other arguments."""

    on_epoch_begin, on_epoch_end = on_train_epoch_start, on_train_epoch_end


def collate(rows: list[dict[str, Any]], pad_token: int) -> dict[str, torch.Tensor]:
    """A batch as the Trainer takes it."""
    ids = [torch.tensor(row["sequences"][row["answer"]]) for row in rows]
    labels = [tokens.clone() for tokens in ids]
    for row, label in zip(rows, labels, strict=True):
        label[: row["starts"][row["answer"]]] = -100
    mask = [torch.ones_like(tokens) for tokens in ids]
    padded = [pad_sequence(part, True, fill) for part, fill in ((ids, pad_token), (labels, -100), (mask, 0))]
    return dict(zip(("input_ids", "labels", "attention_mask"), padded, strict=True))


def adapted(data: AnswerDataModule, selection: str = "all", **settings: Any) -> FinetuneModule:
    """A module whose model is loaded."""
    module = FinetuneModule(data.backbone, ADAPTER, selection=selection, **settings)
    module.configure_model()
    gc.collect()  # of earlier ones, or memory that is given back would count as not taken
    return module


def fit(module: FinetuneModule, precision: str, data: Any, **limits: Any) -> list[float]:
    """Train with flexora: seconds of each epoch."""
    watch = Stopwatch()
    trainer = L.Trainer(devices=1, limit_val_batches=0, precision=precision, callbacks=[watch], **limits, **QUIET)
    trainer.fit(module, data)
    return watch.epochs


def flexora_seconds(rows: EncodedRows, module: FinetuneModule, precision: str) -> float:
    """Seconds of an epoch of flexora for 1,000 tokens."""
    batches = LengthGroupedBatches(rows.lengths, rows.terms, ROWS)
    (seconds,) = fit(module, precision, loader(rows, batches), max_epochs=1)
    return seconds / int(rows.lengths.sum()) * 1000


def trainer_seconds(rows: EncodedRows, module: FinetuneModule, precision: str, sampling: str) -> float:
    """Seconds of an epoch of Hugging Face's Trainer for 1,000 tokens."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=ROWS,
            train_sampling_strategy=sampling,
            bf16=precision == "bf16-mixed",
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            optim="adamw_torch",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        collator = partial(collate, pad_token=rows.pad_token)
        Trainer(module.peft_model, settings, data_collator=collator, train_dataset=rows.data, callbacks=[watch]).train()
    return watch.epochs[0] / int(rows.lengths.sum()) * 1000


def floor(model: PeftModel, precision: str) -> float:
    """Seconds that the products with the frozen weights take at least for 1,000 tokens."""
    layer = model.get_base_model().get_decoder().layers[0]
    weights = [module.weight.detach() for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    weights = [weight for weight in weights if min(weight.shape) > ADAPTER.r]
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        for weight in weights:
            half = weight.to(dtype)
            out = torch.ones(1000, half.shape[1], dtype=dtype) @ half.T
            out @ half
        seconds.append(time.perf_counter() - start)
    return median(seconds) * int(model.config.num_hidden_layers)


def beside_the_trainer(data: AnswerDataModule, precision: str, repeats: int) -> None:
    """Print times, ratios and memory of flexora and of the Trainer."""
    arms: dict[str, Callable[..., float]] = {
        "flexora": flexora_seconds,
        "Trainer": partial(trainer_seconds, sampling="random"),
        "Trainer, grouped by length": partial(trainer_seconds, sampling="group_by_length"),
    }
    every = data.training_rows(data.train_set, "answer")
    longest = data.training_rows(data.train_set.select(every.lengths.argsort()[-ROWS:]), "answer")
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats):  # alternating, so that a machine that grows slower or faster hits all
        for name in list(arms)[:: 1 if repeat % 2 == 0 else -1]:
            seconds[name].append(arms[name](every, adapted(data), precision))
    memory = {name: peak_bytes(partial(arm, longest, adapted(data), precision), CPU) for name, arm in arms.items()}
    title = f"{data.benchmark_name}: {len(every)} rows, {ROWS} a step, {precision}"
    table = Table("arm", "seconds of 1,000 tokens", "over flexora", "MB above the model", "over flexora", title=title)
    for name in arms:
        times = median(theirs / ours for theirs, ours in zip(seconds[name], seconds["flexora"], strict=True))
        cells = [f"{median(seconds[name]):.2f}", f"{times:.2f}"]
        table.add_row(name, *cells, f"{memory[name] / 1e6:,.0f}", f"{memory[name] / memory['flexora']:.2f}")
    Console(width=110).print(table)
    least = floor(adapted(data).peft_model, precision)
    print(f"floor: {least:.2f} s, {least / median(seconds['flexora']):.0%} of flexora's time", flush=True)


def by_layer(data: AnswerDataModule, precision: str, repeats: int) -> None:
    """Print time and memory by the lowest chosen layer; later epochs find the frozen prefix in its cache."""
    seconds: dict[int, list[list[float]]] = {}
    for _ in range(repeats):
        for lowest in (0, 7, 15, 22):
            module = adapted(data, f"{lowest}-29", prefix_cache=1.0)
            seconds.setdefault(lowest, []).append(fit(module, precision, data, max_epochs=2))
    title = f"{data.benchmark_name}: {len(data.train_set)} rows, {data.batch_size} a step, {precision}"
    table = Table("lowest layer", "seconds", "of all layers", "2nd epoch, cached", title=title)
    table.add_column("MB without cache")
    table.add_column("of all")
    peaks = {
        lowest: peak_bytes(partial(fit, adapted(data, f"{lowest}-29"), precision, data, max_epochs=1), CPU)
        for lowest in seconds
    }
    for lowest, found in seconds.items():
        first = [run[0] / whole[0] for run, whole in zip(found, seconds[0], strict=True)]
        second = [run[1] / whole[1] for run, whole in zip(found, seconds[0], strict=True)]
        cells = [f"{median(run[0] for run in found):.1f}", f"{median(first):.2f}", f"{median(second):.2f}"]
        table.add_row(str(lowest), *cells, f"{peaks[lowest] / 1e6:,.0f}", f"{peaks[lowest] / peaks[0]:.2f}")
    Console(width=110).print(table)


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmarks", nargs="+", default=["ArcEasy", "Piqa", "HellaSwag"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--by-layer", action="store_true")
    options = parser.parse_args()
    for name in options.benchmarks:
        rows = options.steps * ROWS
        data = getattr(flexora, name)(Backbone(), source="packaged", batch_size=ROWS, train_rows=rows)
        data.prepare_data()
        (by_layer if options.by_layer else beside_the_trainer)(data, options.precision, options.repeats)


if __name__ == "__main__":
    main()
