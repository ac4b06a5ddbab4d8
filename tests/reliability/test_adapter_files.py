"""Adapters from strangers: no pickle is read, and a configuration is what PEFT declares or is refused in one line."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from flexora.backbone.adapter_files import fingerprint, read_config, same_adapter, weights_of
from flexora.backbone.adapters import load_adapter
from flexora.backbone.methods import FullWeights, build_config
from flexora.cli import main
from flexora.errors import FlexoraError
from flexora.finetune.warm_start import read_start
from tests.finetune.test_methods import METHODS
from tests.tiny import tiny_model

ROOT = Path(__file__).parents[2]


class Bomb:
    """A pickle that leaves a file where it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A LoRA that PEFT wrote."""
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def change(folder: Path, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({}, True),
        ({"target_modules": ["v_proj", "q_proj"]}, True),  # PEFT writes a set in any order
        ({"base_model_name_or_path": "elsewhere", "inference_mode": False, "revision": "v2"}, True),
        ({"lora_alpha": 16}, False),
        ({"use_rslora": True}, False),
        ({"alpha_pattern": {"q_proj": 3}}, False),
    ],
    ids=str,
)
def test_an_adapter_is_its_weights_and_what_they_mean(settings: dict[str, Any], same: bool, folder: Path) -> None:
    change(folder, target_modules=["q_proj", "v_proj"])
    scored = fingerprint(folder)
    change(folder, **settings)
    found = fingerprint(folder)
    assert scored is not None
    assert same_adapter(scored, found) == (scored == found) == same
    assert same_adapter(weights_of(scored), found)  # as older versions wrote it
    (folder / "adapter_config.json").write_text("[")
    assert fingerprint(folder) == weights_of(scored)
    assert not same_adapter(scored, fingerprint(folder))
    (folder / "adapter_model.safetensors").unlink()
    assert fingerprint(folder) is None
    assert not same_adapter(weights_of(scored), None)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"], ["q_proj", "embed_tokens"]], ids=str)
@pytest.mark.parametrize("saved", [False, True, "auto"])
def test_an_adapter_may_hold_the_embeddings(targets: list[str], saved: bool | str, tmp_path: Path) -> None:
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=targets))
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    model.save_pretrained(tmp_path, save_embedding_layers=saved)
    found = load_adapter(tiny_model("llama"), tmp_path)
    expected = PeftModel.from_pretrained(tiny_model("llama"), tmp_path).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if "layers.2." not in name}, tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / "adapter_model.safetensors")
    with pytest.raises(FlexoraError, match=r"does not fit the model, e.g. base_model.model.model.layers.2.self_attn"):
        load_adapter(tiny_model("llama"), tmp_path)


def test_a_pickle_is_never_read(
    folder: Path, recipe: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    load_adapter(tiny_model("llama"), folder)  # of both, safetensors is taken
    (folder / "adapter_model.safetensors").rename(tmp_path / "kept")
    for verb in ("evaluate", "merge"):
        assert main([verb, "--config", str(recipe()), "--adapter", str(folder)]) == 2
        (line,) = (line for line in capfd.readouterr().err.splitlines() if "error:" in line)
        assert "adapter_model.bin, a pickle, which may run any code" in line
        assert "safetensors.torch.save_file(torch.load('adapter_model.bin', weights_only=True)" in line
    for read in (lambda: load_adapter(tiny_model("llama"), folder), lambda: read_start(folder, LoraConfig(r=2))):
        with pytest.raises(FlexoraError, match=r"pickle|no adapter"):
            read()
    assert not (tmp_path / "ran").exists()
    pickle.loads((folder / "adapter_model.bin").read_bytes())  # the bomb is one
    assert (tmp_path / "ran").exists()


def test_the_advice_works(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    torch.save(weights, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    save_file(torch.load(folder / "adapter_model.bin", weights_only=True), folder / "adapter_model.safetensors")
    assert load_adapter(tiny_model("llama"), folder).peft_config["default"].r == 2


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"r": "2"}, "r: Input should be a valid integer"),
        ({"r": 2.5}, "r: "),
        ({"r": 10**9}, "a rank of 1000000000 is larger than any of the adapter's weights"),
        ({"rank_pattern": {"q_proj": 10**9}}, "a rank of 1000000000"),
        ({"r": 10**400}, "r: |integer"),
        ({"lora_alpha": float("nan")}, "lora_alpha: "),
        ({"lora_dropout": "no"}, "lora_dropout: "),
        ({"target_modules": {"q_proj": 1}}, "target_modules: "),
        ({"target_modules": [1, 2]}, "target_modules: "),
        ({"bias": ["none"]}, "bias: "),
        ({"peft_type": "NOPE"}, "peft_type NOPE is none that PEFT knows"),
        ({"peft_type": ["LORA"]}, "peft_type"),
        ({"peft_type": "PROMPT_TUNING"}, "of type PROMPT_TUNING, which adapts no linear modules"),
        ({"megatron_config": {"a": 1}, "megatron_core": "stranger"}, "megatron_config is not supported"),
        ({"layer_replication": [[0, 4], [0, 10**6]]}, "layer_replication is not supported"),
        ({"alora_invocation_tokens": [5], "task_type": "CAUSAL_LM"}, "alora_invocation_tokens is not supported"),
        ({"auto_mapping": "stranger"}, "auto_mapping: "),
        ({"modules_to_save": "lm_head"}, "modules_to_save: "),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_of_another_type_are_one_line(settings: dict[str, Any], expected: str, folder: Path) -> None:
    change(folder, **settings)
    with pytest.raises(FlexoraError, match=expected) as caught:
        read_config(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"r": ' + b"9" * 5_000 + b"}"]
)
def test_what_is_no_configuration_is_one_line(content: bytes, folder: Path) -> None:
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(FlexoraError, match=re.escape(f"cannot load the adapter {folder}: ")) as caught:
        read_config(folder)
    assert "\n" not in str(caught.value)


def test_nothing_of_it_is_imported_or_looked_up(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    mapping = {"parent_library": "stranger", "base_model_class": "Model"}
    change(folder, auto_mapping=mapping, base_model_name_or_path="../../elsewhere", unknown_of_later_versions=1)
    adapted = load_adapter(tiny_model("llama"), folder)
    assert adapted.peft_config["default"].auto_mapping is None
    assert adapted.peft_config["default"].base_model_name_or_path != "../../elsewhere"
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize("name", METHODS)
def test_what_peft_writes_is_read(name: str, tmp_path: Path) -> None:
    import peft

    kind = getattr(peft, name.split(maxsplit=1)[0], FullWeights)
    config: PeftConfig = build_config(kind, **METHODS[name])
    config.target_modules = {"model.layers.0.self_attn.q_proj"}
    config.save_pretrained(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    assert read_config(tmp_path).to_dict() == PeftConfig.from_pretrained(str(tmp_path)).to_dict()


def test_torch_reads_weights_alone() -> None:
    """``torch.load`` runs pickles unless it is told otherwise; nothing else here reads any."""
    for file in (ROOT / "flexora").rglob("*.py"):
        text = file.read_text()
        calls = re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text)
        assert len(calls) == text.count("torch.load("), file
        assert all("weights_only=True" in call for call in calls), file
        assert not re.search(r"pickle\.loads?\(|joblib|shelve|marshal|allow_pickle=True|dill", text), file
