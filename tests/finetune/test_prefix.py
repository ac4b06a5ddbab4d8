"""The frozen prefix: no gradient work in it, and what is kept of it changes nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from flexora.backbone.loading import Backbone
from flexora.data.arc import ArcEasy
from flexora.errors import FlexoraError
from flexora.finetune.module import FinetuneModule
from flexora.finetune.prefix import PrefixCache, frozen_layers
from flexora.scoring.likelihood import answer_loss
from tests.search.bilevel import random_batch
from tests.tiny import FAMILIES


def finetune(model: Path, selection: str, dtype: Any = "float64", **settings: Any) -> FinetuneModule:
    backbone = Backbone(str(model), dtype=dtype, gradient_checkpointing=settings.pop("gradient_checkpointing", False))
    return FinetuneModule(backbone, LoraConfig(r=2, lora_alpha=4), selection=selection, **settings)


def calls_of(module: FinetuneModule) -> Counter[int]:
    """How often each decoder layer's attention runs from now on."""
    calls: Counter[int] = Counter()
    for number, layer in enumerate(module.peft_model.get_base_model().get_decoder().layers):
        layer.self_attn.register_forward_hook(lambda *call, number=number: calls.update([number]))
    return calls


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_below_the_lowest_chosen_one_have_no_backward_pass(
    tiny_models: dict[str, Path], family: str, checkpointing: bool
) -> None:
    module = finetune(tiny_models[family], "2,3", gradient_checkpointing=checkpointing)
    module.configure_model()
    calls, needs_grad = calls_of(module), []
    for layer in frozen_layers(module.peft_model):
        layer.register_forward_hook(lambda layer, inputs, output: needs_grad.append(output.requires_grad))
    answer_loss(module.peft_model, random_batch(1)).backward()
    assert needs_grad == [False, False]
    again = 2 if checkpointing else 1  # checkpointing computes activations anew in the backward pass
    assert calls == {0: 1, 1: 1, 2: again, 3: again}


@pytest.mark.parametrize(
    ("family", "selection"), [("llama", "0-3"), *((family, "2") for family in FAMILIES), ("llama", "1,3")]
)
def test_what_is_kept_changes_nothing(
    tiny_models: dict[str, Path], benchmark_folder: Path, family: str, selection: str, tmp_path: Path
) -> None:
    adapters, losses = [], []
    for room in (0.0, 1.0):
        module = finetune(tiny_models[family], selection, prefix_cache=room, learning_rate=1e-2)
        module.configure_model()
        calls = calls_of(module)
        data = ArcEasy(module.backbone, str(benchmark_folder), batch_size=8, validation_rows=8, max_length=64)
        trainer = L.Trainer(
            accelerator="cpu",
            precision="64-true",
            max_epochs=2,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, datamodule=data)
        losses.append(float(trainer.callback_metrics["val_loss"]))
        adapters.append([p.detach().clone() for p in module.parameters() if p.requires_grad])
        passes = 2 * (len(data.train_dataloader()) + len(data.val_dataloader()))
        lowest = int(selection[0])
        assert calls == {n: passes // 2 if room and n < lowest else passes for n in range(4)}
    torch.testing.assert_close(adapters[1], adapters[0], rtol=0, atol=1e-12)
    assert losses[1] == pytest.approx(losses[0], abs=1e-12)


def test_the_room_is_kept_to(tiny_models: dict[str, Path]) -> None:
    batch = random_batch(1, rows=4)
    row_bytes = [int(n) * 32 * 8 for n in (batch["segments"] >= 0).sum(dim=1)]  # hidden size 32 in float64
    room = sum(row_bytes) - 1
    module = finetune(tiny_models["llama"], "3", prefix_cache=room / 2**30)
    module.configure_model()
    calls = calls_of(module)

    def loss(split: str = "train") -> Tensor:
        with module.prefix.serving(batch, split):
            return answer_loss(module.peft_model, batch)

    with pytest.warns(UserWarning, match="do not hold all rows"):
        first = loss()
    assert 0 < module.prefix.used <= room
    with pytest.warns(UserWarning, match="do not hold all rows"):
        assert torch.equal(loss(), first)
    assert calls[0] == 2  # one row is missing, so that the batch is computed

    module.prefix.room += 1
    loss()
    torch.testing.assert_close(loss(), first, rtol=0, atol=1e-12)
    assert calls[0] == 3
    loss("validation")  # the same numbers of other rows
    assert calls[0] == 4

    module.prefix.forget()  # as before every fit and validation
    loss()
    assert calls[0] == 5


def test_what_cannot_be_kept_is_refused(tiny_models: dict[str, Path]) -> None:
    module = finetune(tiny_models["llama"], "2", prefix_cache=1.0)
    module.configure_model()
    module.peft_model.config.attention_dropout = 0.1
    with pytest.raises(FlexoraError, match=r"attention dropout 0\.1"):
        PrefixCache(module.peft_model, 1)
    assert PrefixCache(module.peft_model, 0).layers == []  # nothing is kept, nothing need be refused
    with pytest.raises(FlexoraError, match="prefix_cache"):
        finetune(tiny_models["llama"], "2", prefix_cache=-1.0)
