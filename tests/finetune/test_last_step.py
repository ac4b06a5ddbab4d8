"""The adapter after the last step is validated wherever training ends, and kept where nothing can be validated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Timer
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from flexora.backbone.loading import Backbone
from flexora.cli import main
from flexora.data.batch import Batch, terms
from flexora.finetune.callbacks import FinetuneFiles
from flexora.finetune.history import EpochHistory, read_history
from flexora.finetune.module import FinetuneModule
from flexora.scoring.likelihood import answer_loss
from tests.search.bilevel import random_batch


def loader(count: int) -> DataLoader[Batch]:
    batches = [random_batch(number) for number in range(count)]
    for batch in batches:
        batch["normalizer"] = float(terms(batch))
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


class StopAt(Timer):
    """Ends the training after a number of steps, as the time does."""

    def __init__(self, step: int) -> None:
        super().__init__({"days": 1})
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


@pytest.mark.parametrize(
    ("settings", "rows", "validations"),
    [
        ({"max_steps": 6}, 2, 2),  # of 4 batches an epoch
        ({"max_steps": 8}, 2, 2),
        ({"max_steps": 3, "accumulate_grad_batches": 2}, 2, 2),
        ({"max_steps": 3, "min_epochs": 1}, 1, 1),
        ({"max_epochs": 2, "check_val_every_n_epoch": 5}, 2, 1),
        ({"max_epochs": 2, "val_check_interval": 3}, 2, 3),
        ({"max_epochs": 9, "check_val_every_n_epoch": 5, "callbacks": [StopAt(7)]}, 2, 1),
    ],
    ids=["within", "at the end", "accumulated", "one epoch", "other epochs", "other batches", "stopped"],
)
def test_the_last_step_is_validated(
    settings: dict[str, Any], rows: int, validations: int, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    module = FinetuneModule(Backbone(str(tiny_models["llama"])), LoraConfig(r=2), learning_rate=0.1)
    module.configure_model()
    counted = [0]
    module.on_validation_epoch_end = lambda: counted.append(counted.pop() + 1)  # type: ignore[method-assign]
    files = FinetuneFiles(tmp_path)
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **(settings | {"callbacks": [files, EpochHistory(tmp_path), *settings.get("callbacks", [])]}),
    )
    usual = trainer.check_val_every_n_epoch
    held_out = loader(1)
    trainer.fit(module, loader(4), held_out)
    history = read_history(tmp_path / "history.csv")
    (batch,) = held_out
    with torch.no_grad():
        now = float(answer_loss(module.peft_model.eval(), batch)) / terms(batch)
    assert len(history) == rows
    assert history[-1]["val_loss"] == pytest.approx(now, rel=1e-6)
    assert counted == [validations]
    assert files.validated
    assert trainer.check_val_every_n_epoch == usual


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "finetune" / "adapter" / "adapter_model.safetensors")


def test_the_end_within_an_epoch_is_reached_again_to_the_same_bits(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexora.report.html.draw", lambda *_: {})
    out = tmp_path / "out"
    limits = "--finetune.trainer={max_epochs: 3, max_steps: 15}"  # of 10 an epoch
    arguments = ["finetune", "--config", str(recipe()), "--selection=1,3", limits]
    assert main(arguments) == 0
    history, adapter = read_history(out / "finetune" / "history.csv"), tensors(out)
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[1]["val_loss"] < history[0]["val_loss"]
    newest = max((out / "finetune" / "checkpoints").glob("*.ckpt"))
    assert newest.name == "step-0000014.ckpt"
    for name in ("done.json", "adapter/adapter_model.safetensors"):
        (out / "finetune" / name).unlink()
    assert main(arguments) == 0
    assert read_history(out / "finetune" / "history.csv") == history
    again = tensors(out)
    assert all(torch.equal(again[name], tensor) for name, tensor in adapter.items())


def test_without_anything_to_validate_with_the_last_adapter_is_kept(
    recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["finetune", "--config", str(recipe()), "--selection=1,3", "--finetune.trainer.max_epochs=1"]
    assert main([*arguments, f"--output_dir={tmp_path / 'usual'}"]) == 0
    assert "nothing was validated" not in capfd.readouterr().out
    assert main([*arguments, "--finetune.trainer.limit_val_batches=0"]) == 0
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "nothing was validated" in line]
    assert line.endswith("so the adapter is that of the last step")
    usual = tensors(tmp_path / "usual")  # of one epoch, whose end is the best
    assert all(torch.equal(usual[name], tensor) for name, tensor in tensors(tmp_path / "out").items())


def test_a_trial_leaves_no_adapter(recipe: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    flags = ["--selection=1", "--finetune.trainer.fast_dev_run=true"]
    assert main(["finetune", "--config", str(recipe()), *flags]) == 2
    assert "the trainer validated nothing; remove what keeps it from that" in capfd.readouterr().err
