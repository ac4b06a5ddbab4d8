"""AdaLoRA beside a loop by hand with PEFT: its loss, its budget of ranks, and what is saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file
from transformers import get_cosine_schedule_with_warmup

from flexora.backbone.adapters import adapter_size, load_adapter, trainable_parameters
from flexora.backbone.loading import Backbone
from flexora.checkpoint import CheckpointFolder, read_checkpoint
from flexora.cli import main
from flexora.data.batch import Batch
from flexora.errors import FlexoraError
from flexora.finetune.adalora import orthogonality
from flexora.finetune.module import FinetuneModule
from flexora.scoring.likelihood import answer_loss
from tests.finetune.test_methods import batches, config_of
from tests.finetune.test_module import loader, trainer
from tests.tiny import tiny_model


def adalora(module: FinetuneModule) -> Any:
    return module.peft_model.base_model


def test_adalora_adds_the_loss_that_peft_adds(tiny_models: dict[str, Path]) -> None:
    module = FinetuneModule(Backbone(str(tiny_models["llama"])), config_of("AdaLoraConfig"), "1,3")
    module.configure_model()
    ids = torch.arange(40).reshape(2, 20)
    whole = module.peft_model(ids, labels=ids).loss
    plain = module.peft_model.get_base_model()(ids, labels=ids).loss
    torch.testing.assert_close(orthogonality(module.peft_model), whole - plain, rtol=1e-5, atol=0)


def test_adalora_may_leave_a_module_without_any_rank(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    module = FinetuneModule(Backbone(str(tiny_models["llama"])), config_of("AdaLoraConfig"), "1,3")
    module.configure_model()
    model, ids = module.peft_model.eval(), torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.fill_(0.0 if "lora_E" in name and "layers.1.self_attn.q_proj" in name else 0.1)
        expected = model(ids).logits
        module.save_adapter(tmp_path)
        loaded = load_adapter(tiny_model("llama"), tmp_path).eval()
        torch.testing.assert_close(loaded(ids).logits, expected, rtol=0, atol=1e-5)
    assert adapter_size(loaded)[1] == trainable_parameters(model) - 4 * (32 + 32 + 1)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_adalora_allocates_as_in_a_loop_by_hand(accumulate: int, tiny_models: dict[str, Path]) -> None:
    def fresh() -> FinetuneModule:
        return FinetuneModule(Backbone(str(tiny_models["llama"])), config_of("AdaLoraConfig"), "1,3", warmup_ratio=0.0)

    rows = [*batches(), *batches()]  # three do not divide them: the last step has two
    steps = [rows[start : start + accumulate] for start in range(0, len(rows), accumulate)]
    for step in steps:
        for batch in step:
            batch["normalizer"] = float(sum(part["target"].numel() for part in step))
    module = fresh()
    trainer([], max_epochs=1, accumulate_grad_batches=accumulate).fit(module, loader(rows))

    other = fresh()
    other.configure_model()
    model, tuner = other.peft_model, adalora(other)
    tuner.peft_config["default"].total_step = len(steps)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, len(steps))
    for number, step in enumerate(steps, start=1):
        loss = sum(answer_loss(model, batch) for batch in step) / step[0]["normalizer"] + orthogonality(model)
        loss.backward()
        optimizer.step()
        schedule.step()
        tuner.update_and_allocate(number)
        optimizer.zero_grad()
    ours, theirs = (dict(m.named_parameters()) for m in (module.peft_model, model))
    zeros = {name: parameter == 0 for name, parameter in theirs.items() if "lora_E" in name}
    assert sum(int(zero.sum()) for zero in zeros.values()) == 2 * 6  # half of the ranks of six modules
    for name, parameter in theirs.items():
        if "lora_" in name:
            torch.testing.assert_close(ours[name], parameter, rtol=1e-4, atol=1e-7)


def test_adalora_is_saved_with_its_target_rank_whichever_epoch_was_best(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rising(module: FinetuneModule, batch: Batch, number: int) -> None:
        module.log("val_loss", float(module.current_epoch))

    monkeypatch.setattr(FinetuneModule, "validation_step", rising)
    late = "{class_path: AdaLoraConfig, init_args: {init_r: 4, target_r: 2, deltaT: 999}}"  # all ranks until the end
    assert main(["finetune", "--config", str(recipe()), "--finetune.adapter", late, "--selection=1,3"]) == 0
    folder = tmp_path / "out" / "finetune"
    newest = CheckpointFolder(folder / "checkpoints").newest(print)
    assert newest is not None
    best = read_checkpoint(newest)["callbacks"]["FinetuneFiles"]["best"]["weights"]
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    ranks = [sum(tensor.count_nonzero() for key, tensor in kept.items() if "lora_E" in key) for kept in (best, saved)]
    assert ranks == [4 * 4, 2 * 4]  # two modules in each of two layers


def test_adalora_is_refused_where_the_scaler_may_skip_a_step(tiny_models: dict[str, Path]) -> None:
    module = FinetuneModule(Backbone(str(tiny_models["llama"])), config_of("AdaLoraConfig"))
    run = trainer([], max_steps=4, plugins=[MixedPrecision("16-mixed", "cpu")])
    with pytest.raises(FlexoraError, match="16-mixed does not go with AdaLoraConfig; use bf16-mixed or 32-true"):
        run.fit(module, loader(batches()))
    assert module.model is None
