"""Base models from folders, and one line for everything that cannot be loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import CLIPConfig, Gemma3Config, GPT2Config, LlamaConfig, PretrainedConfig

from flexora.backbone.families import family_of
from flexora.backbone.loading import Backbone, describe
from flexora.errors import FlexoraError
from tests.tiny import FAMILIES, byte_tokenizer, tiny_model


def refusal(load: Callable[[], object]) -> str:
    """The one line of a load that must fail; it names the setting."""
    with pytest.raises(FlexoraError) as caught:
        load()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith("backbone.model: ")
    return message


@pytest.fixture
def folder(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a saved model, to be damaged."""
    return shutil.copytree(tiny_models["llama"], tmp_path / "model")


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_local_folder(family: str, attention: Literal["eager"] | None, tiny_models: dict[str, Path]) -> None:
    backbone = Backbone(str(tiny_models[family]), attention=attention)
    model = backbone.load_model()
    expected = tiny_model(family)
    assert type(model) is type(expected)
    assert all(torch.equal(left, right) for left, right in zip(model.parameters(), expected.parameters(), strict=True))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == ("eager" if family == "gemma2" else attention or "sdpa")
    assert not model.config.use_cache
    text = "Which is oak?\nAnswer: oak"
    assert backbone.load_tokenizer()(text)["input_ids"] == byte_tokenizer()(text)["input_ids"]
    described = describe(backbone.load_config())
    assert (described.name, described.num_layers) == (type(expected).__name__, 4)
    assert described.family == family_of(type(expected).__name__)


def test_attention_that_would_lose_the_soft_capping(tiny_models: dict[str, Path]) -> None:
    backbone = Backbone(str(tiny_models["gemma2"]), attention="sdpa")
    with pytest.raises(FlexoraError, match=r"^backbone\.attention: sdpa cannot soft-cap .* set it to eager$"):
        backbone.load_config()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_precision_of_the_weights(dtype: str, tiny_models: dict[str, Path]) -> None:
    model = Backbone(str(tiny_models["llama"]), dtype=dtype).load_model()  # type: ignore[arg-type]
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_checkpointing_gives_the_same_gradients(tiny_models: dict[str, Path]) -> None:
    ids = torch.arange(30)[None]
    gradients = []
    for checkpointing in (False, True):
        model = Backbone(str(tiny_models["llama"]), gradient_checkpointing=checkpointing).load_model().train()
        assert model.is_gradient_checkpointing == checkpointing
        weight = model.model.layers[1].self_attn.q_proj.weight.requires_grad_()
        gradients += torch.autograd.grad(model(ids, labels=ids).loss, [weight])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("where", ["{tmp}/none", "./none", "~/none/of/these", "some/deep/folder"])
def test_a_folder_that_does_not_exist(where: str, tmp_path: Path) -> None:
    backbone = Backbone(where.format(tmp=tmp_path))
    assert f"the folder {backbone.model} does not exist" in refusal(backbone.load_model)
    assert "does not exist" in refusal(backbone.load_tokenizer)


def test_a_packaged_model_that_is_unknown_or_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXORA_CACHE", str(tmp_path))
    assert "no packaged model 'Nope'" in refusal(Backbone("packaged:Nope").load_model)
    with pytest.raises(FlexoraError, match="run: flexora fetch demo"):
        Backbone().load_model()


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        (GPT2Config(n_layer=2, n_embd=8, n_head=2), "GPT2LMHeadModel"),
        (LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2), "LlamaForSequenceClassification"),
        (CLIPConfig(), "CLIPModel"),  # it has no num_hidden_layers of its own
        (LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=2), None),
        (Gemma3Config(), "Gemma3ForConditionalGeneration"),
    ],
    ids=["gpt2", "classifier", "clip", "unnamed", "gemma3 with pictures"],
)
def test_an_unsupported_architecture(config: PretrainedConfig, architecture: str | None, tmp_path: Path) -> None:
    config.architectures = None if architecture is None else [architecture]
    config.save_pretrained(tmp_path)
    message = refusal(Backbone(str(tmp_path)).load_model)  # no weights are there: it is refused before
    assert f"architecture {architecture or 'of an unnamed kind'} is not supported" in message
    assert ("it reads pictures too" in message) == hasattr(config, "vision_config")


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3"])
def test_a_model_that_sees_what_comes_after(family: str, tmp_path: Path) -> None:
    config_class, model_class, _ = FAMILIES[family]
    config_class(use_bidirectional_attention=True, architectures=[model_class.__name__]).save_pretrained(tmp_path)
    assert "use_bidirectional_attention lets each token see" in refusal(Backbone(str(tmp_path)).load_model)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")


def no_type(file: Path) -> None:
    file.write_text(json.dumps({"hidden_size": 8}))


def wrong_type(file: Path) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": "four"}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.json", Path.unlink),
        ("config.json", truncated),
        ("config.json", no_type),
        ("config.json", wrong_type),
        ("model.safetensors", Path.unlink),
        ("model.safetensors", truncated),
        ("model.safetensors", pointer),
    ],
)
def test_a_damaged_folder(name: str, damage: Callable[[Path], object], folder: Path) -> None:
    damage(folder / name)
    assert f"cannot load {folder}" in refusal(Backbone(str(folder)).load_model)


def test_a_broken_tokenizer(folder: Path) -> None:
    truncated(folder / "tokenizer.json")
    assert f"cannot load {folder}" in refusal(Backbone(str(folder)).load_tokenizer)


#: A tokenizer, a configuration and a model that come as code.
CODE = """
import os
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

class Tokenizer(PreTrainedTokenizerFast):
    pass

class Config(LlamaConfig):
    def __init__(self, **settings):
        raise AssertionError("the configuration's code was run")

class Model(LlamaForCausalLM):
    def __init__(self, config):
        raise AssertionError("the model's code was run")
"""


def test_the_tokenizers_code_alone_is_run_and_only_where_it_is_trusted(folder: Path) -> None:
    (folder / "remote.py").write_text(CODE)
    for name, auto in (
        ("tokenizer_config.json", {"AutoTokenizer": [None, "remote.Tokenizer"]}),
        ("config.json", {"AutoConfig": "remote.Config", "AutoModelForCausalLM": "remote.Model"}),
    ):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {"auto_map": auto}))
    trusting = Backbone(str(folder), trust_remote_code=True)
    tokenizer = trusting.load_tokenizer()
    assert type(tokenizer).__module__.startswith("transformers_modules.")
    assert tokenizer("oak")["input_ids"] == byte_tokenizer()("oak")["input_ids"]
    assert trusting.load_model().config.num_hidden_layers == 4
    assert type(Backbone(str(folder)).load_tokenizer()).__module__.startswith("transformers.")


def test_code_of_another_repository_is_not_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def cached_file(name: str, *_: object, revision: str | None = None, **__: object) -> str:
        asked.append(f"{name} {revision}")
        raise OSError("no such revision")

    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": [None, "someone/else--remote.Tokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("transformers.dynamic_module_utils.cached_file", cached_file)
    assert "no such revision" in refusal(Backbone(str(folder), revision="main", trust_remote_code=True).load_tokenizer)
    assert asked == [f"someone/else {'0' * 40}"]


@pytest.mark.parametrize("revision", [None, "main", "0123abc", "v" * 40])
def test_code_that_may_change_is_refused(revision: str | None) -> None:
    with pytest.raises(FlexoraError, match=r"^backbone.trust_remote_code: .*backbone.revision .*40 digits\)$"):
        Backbone("some/model", revision=revision, trust_remote_code=True)
    assert Backbone("some/model", revision="0123456789abcdef" * 2 + "01234567", trust_remote_code=True)
