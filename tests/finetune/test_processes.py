"""Several processes, each with its share of the batches, against one process with all of them; DDP and FSDP2."""

from __future__ import annotations

import os
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from peft import LoraConfig
from safetensors.torch import load_file
from torch import distributed
from torch.multiprocessing.spawn import start_processes

from flexora.backbone.loading import Backbone
from flexora.data.arc import ArcEasy
from flexora.errors import FlexoraError
from flexora.finetune.module import FinetuneModule
from tests.commands import FORKSERVER


def fit(
    folder: Path, model: Path, rows: Path, dtype: str, world_size: int, strategy: str, resumed: bool
) -> FinetuneModule:
    """Two epochs of 9 batches in steps of 4, and 3 batches of held-out rows; the second epoch alone if resumed."""
    data = ArcEasy(
        Backbone(str(model), dtype=dtype, gradient_checkpointing=strategy == "fsdp2"),
        source=str(rows),
        batch_size=4,
        train_rows=36,
        validation_rows=12,
        max_length=64,
    )
    module = FinetuneModule(data.backbone, LoraConfig(r=2, lora_alpha=4), selection="1-2", learning_rate=1e-2)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=strategy,
        precision="bf16-mixed" if dtype == "bfloat16" else "32-true",
        max_epochs=2,
        accumulate_grad_batches=4 // world_size,
        gradient_clip_val=0.1,
        use_distributed_sampler=False,
        callbacks=[ModelCheckpoint(folder, "{epoch}", monitor="val_loss", save_top_k=-1, enable_version_counter=False)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data, ckpt_path=folder / "epoch=0.ckpt" if resumed else None, weights_only=True)
    assert trainer.global_step == 6
    if trainer.is_global_zero:
        last = torch.load(folder / "epoch=1.ckpt", weights_only=True)
        module.save_adapter(folder / "adapter", last["state_dict"])
        torch.save(float(trainer.callback_metrics["val_loss"]), folder / "loss.pt")
    return module


def work(rank: int, folder: Path, model: Path, rows: Path, dtype: str, strategy: str) -> None:
    """What each of two processes does: once through, and again from the end of the first epoch."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}  # Lightning starts no processes then
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for resumed in (False, True):
        module = fit(folder, model, rows, dtype, 2, strategy, resumed)
        own = sum(p.numel() if not hasattr(p, "to_local") else p.to_local().numel() for p in module.parameters())
        torch.save(own, folder / f"parameters_{rank}.pt")
        if rank == 0:
            (folder / "adapter").rename(folder / f"resumed_{resumed}")
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("strategy", "dtype", "tolerance"),
    [("ddp", "float64", 1e-9), ("fsdp2", "float64", 1e-9), ("fsdp2", "bfloat16", 1e-5)],
)
def test_two_processes_give_the_adapter_of_one(
    strategy: str, dtype: str, tolerance: float, tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    """Neither 9 batches of an epoch nor 3 of the held-out rows divide: one process has none in the last turn."""
    joint, alone = tmp_path / "joint", tmp_path / "alone"
    joint.mkdir()
    given = (tiny_models["llama"], benchmark_folder, dtype)
    start_processes(work, args=(joint, *given, strategy), nprocs=2, start_method=FORKSERVER)  # type: ignore[no-untyped-call]
    module = fit(alone, *given, 1, "auto", resumed=False)
    expected = load_file(alone / "adapter" / "adapter_model.safetensors")
    assert next(iter(expected.values())).dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert len(expected) == 2 * 2 * 2
    for part in ("resumed_False", "resumed_True"):
        found = load_file(joint / part / "adapter_model.safetensors")
        assert found.keys() == expected.keys()
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=tolerance)
    assert torch.load(joint / "loss.pt") == pytest.approx(torch.load(alone / "loss.pt"), rel=1e-6)
    whole = sum(parameter.numel() for parameter in module.parameters())
    parts = [torch.load(joint / f"parameters_{rank}.pt") for rank in range(2)]
    kept = (module.peft_model.get_base_model().get_input_embeddings().weight.numel()) * 2 + 32  # head and last norm
    assert parts == ([kept + (whole - kept) / 2] * 2 if strategy == "fsdp2" else [whole] * 2)


def test_weights_in_4_bits_are_not_sharded(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    module = FinetuneModule(Backbone(str(tiny_models["llama"]), quantization="nf4"), LoraConfig())
    monkeypatch.setattr(module, "_device_mesh", object())
    with pytest.raises(FlexoraError, match="fsdp2 cannot shard weights in 4 bits; remove it, or train with strategy"):
        module.configure_model()


def test_the_trainer_must_not_deal_the_rows_once_more(tiny_models: dict[str, Path]) -> None:
    from flexora.backbone.limits import require_trainer

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with pytest.raises(FlexoraError, match="give the Trainer use_distributed_sampler=False"):
        require_trainer(L.Trainer(accelerator="cpu", devices=2, strategy="ddp", **quiet), "finetune")
