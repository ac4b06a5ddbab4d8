"""The search module under Lightning's Trainer: what it leaves behind, and how it starts again."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer

from flexora.backbone.loading import Backbone
from flexora.data.arc import ArcEasy
from flexora.errors import FlexoraError
from flexora.search.callbacks import SearchFiles
from flexora.search.module import SearchModule


def fit(model: Path, rows: Path, folder: Path, **settings: object) -> SearchModule:
    """Search three outer steps."""
    backbone = Backbone(str(model))
    module = SearchModule(backbone, LoraConfig(r=2, lora_alpha=4), outer_steps=3, batch_size=4, alpha_lr=0.1)
    data = ArcEasy(backbone, source=str(rows), validation_rows=8, max_length=64)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SearchFiles(folder)],
        **settings,  # type: ignore[arg-type]
    )
    trainer.fit(module, datamodule=data.bilevel(3, module.inner_steps, module.batch_size))
    return module


def test_the_model_is_plain_lora_again_after_the_search(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    module = fit(tiny_models["llama"], benchmark_folder, tmp_path)
    assert module.alpha.any()
    scalings = {layer.scaling["default"] for layer in module.model.modules() if isinstance(layer, LoraLayer)}
    assert scalings == {2.0}


def test_a_search_stopped_after_its_last_step_still_gives_its_selection(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    first = fit(tiny_models["llama"], benchmark_folder, tmp_path)
    again = fit(tiny_models["llama"], benchmark_folder, tmp_path)
    assert again.history == first.history
    assert again.selection() == first.selection()
    assert torch.equal(again.alpha, first.alpha)


def test_float64_throughout(tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path) -> None:
    module = fit(tiny_models["llama"], benchmark_folder, tmp_path, precision="64-true")
    problem = module.problem
    assert problem is not None
    moments = [moment for kept in problem.state.buffers for moment in kept]
    kinds = {tensor.dtype for tensor in (module.alpha, *problem.theta, *moments)}
    assert kinds == {torch.float64}


def test_layers_of_different_sizes_are_refused() -> None:
    with pytest.raises(FlexoraError, match=r"adapter\.rank_pattern"):
        SearchModule(Backbone(), LoraConfig(rank_pattern={"q_proj": 4}))
