"""The merged model against base and adapter: logits, scores through the command line, and what is refused."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoHaConfig,
    LoraConfig,
    MissConfig,
    PeftConfig,
    PeftModel,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from flexora.backbone import merging
from flexora.backbone.loading import Backbone
from flexora.backbone.merging import merge
from flexora.cli import main
from flexora.errors import FlexoraError
from flexora.scoring.results import Results
from flexora.verbs.settings import Recipe
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model
from tests.verbs.test_bad_input import failing

IDS = torch.arange(40).reshape(2, 20)
LORA = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")


def save_adapter(folder: Path, config: PeftConfig, family: str = "llama", **overrides: Any) -> Path:
    """Write an adapter off its start, for a tiny model."""
    model = get_peft_model(tiny_model(family, **overrides), config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = model.eval()(IDS).logits
    return found


def require_merged(model: Path, family: str, adapter: Path, target: Path) -> None:
    """Check that what merge writes is base and adapter."""
    difference = merge(Backbone(str(model)), adapter, target)
    adapted = logits(PeftModel.from_pretrained(tiny_model(family), adapter))
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(target)), adapted, rtol=0, atol=1e-4)
    assert 0 <= difference < 1e-4
    assert float((logits(tiny_model(family)) - adapted).abs().max()) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_is_base_and_adapter(family: str, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    adapter, target = save_adapter(tmp_path / "adapter", LORA, family), tmp_path / "models" / "merged"
    require_merged(tiny_models[family], family, adapter, target)
    assert AutoTokenizer.from_pretrained(target)("ash") == byte_tokenizer()("ash")
    assert AutoModelForCausalLM.from_pretrained(target).config.use_cache
    assert [path.name for path in target.parent.iterdir()] == ["merged"]
    assert {path.stat().st_mode & 0o777 for path in target.iterdir()} == {0o644}


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]),
        LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        LoHaConfig(r=2, target_modules=["v_proj"]),
        MissConfig(r=2, target_modules=["q_proj"]),
        VeraConfig(r=2, target_modules=["o_proj"]),
    ],
    ids=["DoRA", "head", "LoHa", "MiSS", "VeRA"],
)
def test_other_methods_that_change_weights(
    config: PeftConfig, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "load_adapter", PeftModel.from_pretrained)
    require_merged(tiny_models["llama"], "llama", save_adapter(tmp_path / "adapter", config), tmp_path / "merged")


def test_the_sum_is_in_the_backbones_dtype_and_unquantised(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", LORA)
    for name, quantization in (("full", None), ("nf4", "nf4")):
        merge(Backbone(str(tiny_models["llama"]), quantization=quantization), adapter, tmp_path / name)
    full, nf4 = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("full", "nf4"))
    assert full == nf4
    merge(Backbone(str(tiny_models["llama"]), dtype="bfloat16"), adapter, tmp_path / "half")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    stored = tmp_path / "stored"
    Backbone(str(tiny_models["llama"]), quantization="nf4").load_model().save_pretrained(stored)
    with pytest.raises(FlexoraError, match=r"backbone\.model: .* is stored quantised"):
        merge(Backbone(str(stored)), adapter, tmp_path / "merged")


@pytest.mark.parametrize("name", ["norm", "model.norm"])
def test_what_is_not_tied_is_merged_in_a_tied_model(name: str, tmp_path: Path) -> None:
    tied, settings = tmp_path / "tied", {"tie_word_embeddings": True}
    for part in (tiny_model("llama", **settings), byte_tokenizer()):
        part.save_pretrained(tied)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[name])
    adapter = save_adapter(tmp_path / "adapter", config, **settings)
    assert merge(Backbone(str(tied)), adapter, tmp_path / "merged") < 1e-4
    adapted = logits(PeftModel.from_pretrained(tiny_model("llama", **settings), adapter))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), adapted, rtol=0, atol=1e-4)


def test_what_cannot_be_merged_is_told_in_one_line(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "load_adapter", PeftModel.from_pretrained)
    prompts = save_adapter(tmp_path / "prompts", PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    gone = tmp_path / "gone"
    save_adapter(gone, LoraConfig(r=2, lora_alpha=float("nan"), target_modules=["q_proj"]))
    tied, settings = tmp_path / "tied", {"tie_word_embeddings": True}
    for part in (tiny_model("llama", **settings), byte_tokenizer()):
        part.save_pretrained(tied)
    head = save_adapter(tmp_path / "head", LoraConfig(r=2, target_modules=["q_proj", "lm_head"]), **settings)
    kept = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    embedding = save_adapter(tmp_path / "embedding", kept, **settings)
    for model, adapter, expected in (
        (tiny_models["llama"], prompts, "is of type PROMPT_TUNING, which cannot be merged"),
        (tiny_models["llama"], gone, r"\(LORA\) cannot be merged: NaNs detected"),
        (tied, head, "changes lm_head, whose weights the model has in a second place"),
        (tied, embedding, r"changes model\.embed_tokens, whose weights the model has in a second place"),
    ):
        with pytest.raises(FlexoraError, match=expected) as caught:
            merge(Backbone(str(model)), adapter, tmp_path / "out" / "merged")
        assert len(str(caught.value).splitlines()) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_leaves_nothing(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(tmp_path / "adapter", LORA)

    def fill_up(self: PreTrainedModel, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", fill_up)
    with pytest.raises(FlexoraError, match=r"merged: No space left on device; make room"):
        merge(Backbone(str(tiny_models["llama"])), adapter, tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_merged_model_scores_as_the_adapter_does(
    recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, out = str(recipe()), tmp_path / "out"
    assert main(["finetune", "--config", config, "--selection=1,3"]) == 0
    assert main(["evaluate", "--config", config, "--evaluate.arms=[base,flexora]"]) == 0
    model = Recipe("run", ["--config", config]).sections["backbone"]["model"]
    assert main(["merge", f"--backbone.model={model}", f"--output_dir={out}"]) == 0  # without a benchmark
    assert f"{out / 'merge' / 'model'}, 0." in capfd.readouterr().out
    merged = [f"--backbone.model={out / 'merge' / 'model'}", f"--output_dir={tmp_path / 'merged'}"]
    assert main(["evaluate", "--config", config, *merged, "--evaluate.arms=[base]"]) == 0
    base, flexora = Results.read(out / "evaluate" / "results.json").arms
    (found,) = Results.read(tmp_path / "merged" / "evaluate" / "results.json").arms
    assert found.loss == pytest.approx(flexora.loss, abs=1e-5)
    assert found.loss != pytest.approx(base.loss, abs=1e-3)
    assert found.metrics == flexora.metrics


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--adapter=base"], "--adapter: base is the model itself"),
        (["--adapter=lora"], "--adapter: lora has no adapter in .*; run flexora run first"),
        (["--to={adapter}"], "adapter exists already; choose another place, or delete it"),
        (["--to=/dev/null/model"], "cannot write /dev/null/model: "),
    ],
    ids=["base", "arm", "existing", "place"],
)
def test_merge_refuses_before_it_loads(
    flags: list[str],
    expected: str,
    recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Backbone, "load_model", lambda self: pytest.fail("the model was loaded"))
    adapter = save_adapter(tmp_path / "adapter", LORA)
    given = [flag.format(adapter=adapter) for flag in flags]
    line = failing(["merge", "--config", str(recipe()), f"--adapter={adapter}", *given], capfd)
    assert re.search(expected, line)
