"""The fine-tune's loss against the mean over answer tokens, whatever the batches are cut into."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from peft import LoraConfig
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader

from flexora.backbone.limits import Phase, require_precision
from flexora.backbone.loading import Backbone
from flexora.data.batch import Batch
from flexora.errors import FlexoraError
from flexora.finetune.history import EpochHistory, read_history
from flexora.finetune.module import FinetuneModule, may_fuse
from flexora.scoring.likelihood import answer_loss
from tests.search.bilevel import random_batch


class Gradients(Callback):
    """Keeps the gradients of the first optimiser step."""

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: object) -> None:
        self.kept = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def loader(batches: list[Batch]) -> DataLoader[Batch]:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


@pytest.fixture
def module(tiny_models: dict[str, Path]) -> FinetuneModule:
    return FinetuneModule(Backbone(str(tiny_models["llama"])), LoraConfig(r=2, lora_alpha=4))


@pytest.fixture
def parts() -> list[Batch]:
    """Two micro-batches with different numbers of answer tokens."""
    batches = [random_batch(1, rows=1), random_batch(2, rows=5)]
    tokens = [batch["target"].numel() for batch in batches]
    assert tokens[0] != tokens[1]
    for batch in batches:
        batch["normalizer"] = float(sum(tokens))
    return batches


def trainer(callbacks: list[Callback], **settings: object) -> L.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "barebones": False,
    } | settings
    return L.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, callbacks=callbacks, **quiet)  # type: ignore[arg-type]


def test_accumulated_gradients_are_those_of_the_mean_over_all_tokens(
    module: FinetuneModule, parts: list[Batch]
) -> None:
    watch = Gradients()
    trainer([watch], max_steps=1, accumulate_grad_batches=2).fit(module, loader(parts))
    assert watch.kept

    fresh = FinetuneModule(module.backbone, module.adapter)
    fresh.configure_model()
    loss = sum(answer_loss(fresh.peft_model, part) for part in parts) / parts[0]["normalizer"]
    loss.backward()  # type: ignore[union-attr]
    expected = {name: p.grad for name, p in fresh.named_parameters() if p.grad is not None}
    assert any(bool(gradient.any()) for gradient in watch.kept.values())
    torch.testing.assert_close(watch.kept, expected, rtol=1e-5, atol=1e-8)


def test_validation_loss_is_the_mean_over_all_tokens(module: FinetuneModule, parts: list[Batch]) -> None:
    module.configure_model()
    run = trainer([])
    run.validate(module, loader(parts), verbose=False)
    with torch.no_grad():
        whole = sum(answer_loss(module.peft_model, part) for part in parts) / parts[0]["normalizer"]
    assert float(run.callback_metrics["val_loss"]) == pytest.approx(float(whole), rel=1e-6)


def test_the_history_has_the_means_of_each_epoch(module: FinetuneModule, parts: list[Batch], tmp_path: Path) -> None:
    """With a learning rate that moves nothing, both losses are those of the rows as they are."""
    module.learning_rate = 1e-30
    run = trainer([EpochHistory(tmp_path)], max_epochs=3)
    run.fit(module, loader(parts), loader(parts[:1]))
    with torch.no_grad():
        sums = [float(answer_loss(module.peft_model, part)) for part in parts]
    train, validation = sum(sums) / parts[0]["normalizer"], sums[0] / parts[0]["target"].numel()
    rows = read_history(tmp_path / "history.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["train_loss"] == pytest.approx(train, rel=1e-6)
        assert row["val_loss"] == pytest.approx(validation, rel=1e-6)


def test_the_history_goes_on_where_training_does(module: FinetuneModule, parts: list[Batch], tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path / "checkpoints", save_last=True, monitor="val_loss")
    settings = {"enable_checkpointing": True}
    for epochs in (2, 3):
        last = tmp_path / "checkpoints" / "last.ckpt"
        run = trainer([checkpoints, EpochHistory(tmp_path)], max_epochs=epochs, **settings)
        run.fit(module, loader(parts), loader(parts), ckpt_path=last if last.is_file() else None)
    assert [row["epoch"] for row in read_history(tmp_path / "history.csv")] == [1, 2, 3]
    trainer([EpochHistory(tmp_path)], max_epochs=1).fit(module, loader(parts))
    (row,) = read_history(tmp_path / "history.csv")  # a fresh start leaves nothing of an older one
    assert row.keys() == {"epoch", "train_loss"}


def test_a_fit_without_end_is_refused(module: FinetuneModule, parts: list[Batch]) -> None:
    with pytest.raises(FlexoraError, match="give the Trainer max_epochs or max_steps"):
        trainer([], max_epochs=-1, max_time="00:00:00:09").fit(module, loader(parts))


@pytest.mark.parametrize(
    ("phase", "precision", "taken"),
    [
        ("search", "32-true", False),
        ("search", "bf16-mixed", False),
        ("finetune", None, False),
        ("finetune", "16-mixed", True),
        ("finetune", 16, True),
        ("evaluate", "32-true", True),
    ],
)
def test_a_float16_base_is_trained_only_where_the_loss_is_scaled(
    phase: Phase, precision: str | int | None, taken: bool
) -> None:
    """By itself a gradient of a mean over thousands of tokens has parts that float16 rounds to nothing."""
    expected = pytest.raises(FlexoraError, match=f"^{phase}: backbone.dtype float16 is refused: .*; use bfloat16")
    with nullcontext() if taken else expected:
        require_precision(precision, phase, "float16")
    require_precision("32-true", phase, "bfloat16")


def test_a_trainer_is_asked_whether_it_suits_the_base(module: FinetuneModule, parts: list[Batch]) -> None:
    module.backbone = replace(module.backbone, dtype="float16")
    with pytest.raises(FlexoraError, match=r"^finetune: backbone.dtype float16 is refused"):
        trainer([], max_steps=1).fit(module, loader(parts))


class Averaged(EMAWeightAveraging):
    """One's own average."""


@pytest.mark.parametrize(
    "callback",
    [WeightAveraging(), Averaged(), StochasticWeightAveraging(0.1), GradientAccumulationScheduler({0: 2})],
    ids=lambda callback: type(callback).__name__,
)
def test_callbacks_that_change_what_is_trained_or_saved_are_refused(
    callback: Callback, module: FinetuneModule, parts: list[Batch]
) -> None:
    with pytest.raises(FlexoraError, match=r"^callbacks: \w+: .*; remove it, and "):
        trainer([callback], max_epochs=1).fit(module, loader(parts))


def test_the_search_for_a_learning_rate_leaves_no_losses_behind(
    module: FinetuneModule, parts: list[Batch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be told, with their rows, as those of the first step."""
    monkeypatch.chdir(tmp_path)
    seen: list[int] = []

    def on_train_batch_start(*_: object) -> None:
        seen.append(len(module.step_losses))

    finder = LearningRateFinder(num_training_steps=3, update_attr=False)
    watch = LambdaCallback(on_train_batch_start=on_train_batch_start)
    trainer([finder, watch], max_steps=2, enable_checkpointing=True).fit(module, loader(parts))
    assert seen == [0, 0]


def test_clipping_goes_with_bf16(module: FinetuneModule, parts: list[Batch]) -> None:
    watch = Gradients()
    settings = {"max_steps": 1, "accumulate_grad_batches": 2, "precision": "bf16-mixed", "gradient_clip_val": 1e-3}
    run = trainer([watch], **settings)
    run.fit(module, loader(parts))
    clipped = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    before, after = (torch.stack([tensor.norm() for tensor in t]).norm() for t in (watch.kept.values(), clipped))
    assert before > 2e-3
    assert float(after) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("device", "clip", "precision", "expected"),
    [
        ("cuda", None, "bf16-mixed", True),
        ("cuda", 1.0, "32-true", True),
        ("cuda", None, "16-mixed", False),  # see test_a_step_without_gradients_passes_the_scaler
        ("cuda", 1.0, "bf16-mixed", False),  # Lightning's MixedPrecision.clip_gradients raises for a fused optimiser
        ("cpu", None, "32-true", False),
    ],
)
def test_when_adamw_is_fused(device: str, clip: float | None, precision: str, expected: bool) -> None:
    assert may_fuse(device, clip, precision) == expected


def test_where_adamw_is_not_fused_torch_decides_how_it_runs(module: FinetuneModule, parts: list[Batch]) -> None:
    """Its default takes several weights at once on CUDA, only where neither way is named."""
    run = trainer([], max_steps=1)
    run.fit(module, loader(parts))
    assert (run.optimizers[0].defaults["fused"], run.optimizers[0].defaults["foreach"]) == (None, None)


@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_give_the_same_gradients(
    module: FinetuneModule, parts: list[Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The backend that takes seconds, not a minute; what is captured is the same.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    counters.clear()
    kept = []
    for compiled in (False, True):
        fresh = FinetuneModule(module.backbone, module.adapter, selection="1-3", compile=compiled)
        fresh.configure_model()
        for part in parts:
            answer_loss(fresh.peft_model, part).backward()
        kept.append({name: p.grad for name, p in fresh.named_parameters() if p.grad is not None})
    assert counters["stats"]["unique_graphs"] >= 2  # layers with LoRA, and those without
    assert not counters["graph_break"]
    torch.testing.assert_close(kept[1], kept[0], rtol=1e-4, atol=1e-6)
