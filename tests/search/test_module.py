"""The search module under Lightning's Trainer: what it leaves behind, and how it starts again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def fit(model: Path, rows: Path, folder: Path, trainer: dict[str, Any] | None = None, **settings: Any) -> SearchModule:
    """Search three outer steps, or that many repeats of them."""
    backbone = Backbone(str(model))
    adapter = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1)
    module = SearchModule(backbone, adapter, outer_steps=3, batch_size=4, alpha_lr=0.1, **settings)
    data = ArcEasy(backbone, source=str(rows), validation_rows=8, max_length=64)
    runner = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SearchFiles(folder)],
        **(trainer or {}),
    )
    runner.fit(module, datamodule=data.bilevel(3, module.inner_steps, module.batch_size, repeats=module.repeats))
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
    module = fit(tiny_models["llama"], benchmark_folder, tmp_path, {"precision": "64-true"})
    problem = module.problem
    assert problem is not None
    moments = [moment for kept in problem.state.buffers for moment in kept]
    kinds = {tensor.dtype for tensor in (module.alpha, *problem.theta, *moments)}
    assert kinds == {torch.float64}


def test_layers_of_different_sizes_are_refused() -> None:
    with pytest.raises(FlexoraError, match=r"adapter\.rank_pattern"):
        SearchModule(Backbone(), LoraConfig(rank_pattern={"q_proj": 4}))


def test_repeats_start_again_with_other_rows(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    once = fit(tiny_models["llama"], benchmark_folder, tmp_path / "once")
    twice = fit(tiny_models["llama"], benchmark_folder, tmp_path / "twice", repeats=2)
    assert twice.history[:3] == once.history
    first, again = twice.history[0], twice.history[3]
    assert [row.repeat for row in twice.history] == [1, 1, 1, 2, 2, 2]
    assert again.outer_step == 4
    # Adam's first step from zero is the learning rate, whatever the gradient: alpha and its state were reset.
    for row in (first, again):
        assert max(map(abs, row.alpha)) == pytest.approx(0.1, rel=1e-3)
    assert again.validation_loss != first.validation_loss
    selection = twice.selection()
    assert selection.stability is not None
    assert selection.stability.repeats is not None
    assert len(selection.stability.repeats.choices) == 2
    assert selection.alpha == pytest.approx([sum(row.alpha[layer] for row in twice.history) / 6 for layer in range(4)])


def test_a_search_stopped_in_its_second_repeat_continues_to_the_same_bits(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    whole = fit(tiny_models["llama"], benchmark_folder, tmp_path / "whole", repeats=2, checkpoint_every=1)

    settings = {"repeats": 2, "checkpoint_every": 1}
    fit(tiny_models["llama"], benchmark_folder, tmp_path / "cut", {"limit_train_batches": 4}, **settings)
    continued = fit(tiny_models["llama"], benchmark_folder, tmp_path / "cut", **settings)
    assert continued.history == whole.history
    assert continued.selection() == whole.selection()


def test_a_check_against_the_exact_hypergradient_changes_nothing(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    plain = fit(tiny_models["llama"], benchmark_folder, tmp_path / "plain")
    checked = fit(tiny_models["llama"], benchmark_folder, tmp_path / "checked", check_every=2)
    assert [row.alpha for row in checked.history] == [row.alpha for row in plain.history]
    cosines = [row.cosine for row in checked.history]
    assert cosines[0] is cosines[2] is None
    assert cosines[1] is not None
    assert 0.999 < cosines[1] <= 1.000001
    settings = checked.selection().search
    assert settings is not None
    assert settings["smallest_cosine_with_exact"] == cosines[1]


def test_rows_in_another_order_are_refused(
    tiny_models: dict[str, Path], benchmark_folder: Path, tmp_path: Path
) -> None:
    module = fit(tiny_models["llama"], benchmark_folder, tmp_path)
    with pytest.raises(FlexoraError, match="outer step 1 where 4 is due"):
        module.training_step({"outer_step": 0, "train": [], "validation": []}, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"check_every": 0}, r"search\.check_every"),
        ({"repeats": 0}, r"search\.repeats"),
        ({"inner_warmup_ratio": 1.0}, r"search\.inner_warmup_ratio"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FlexoraError, match=message):
        SearchModule(Backbone(), LoraConfig(), **settings)


def test_repeats_need_a_start_that_can_be_drawn_again() -> None:
    with pytest.raises(FlexoraError, match=r"init_lora_weights pissa"):
        SearchModule(Backbone(), LoraConfig(init_lora_weights="pissa"), repeats=2)
