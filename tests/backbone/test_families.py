"""The registry against the real modules of every family."""

from __future__ import annotations

import re

import pytest
from torch import nn

from flexora.backbone import families
from flexora.backbone.families import Family, family_of, register
from flexora.backbone.loading import describe
from flexora.errors import FlexoraError
from tests.tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_projection_of_a_layer_is_listed_in_forward_order(name: str) -> None:
    model = tiny_model(name, layers=3)
    family = family_of(type(model).__name__)
    layers = model.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList)
    assert len(layers) == 3
    for index, layer in enumerate(layers):
        linear = [path for path, module in layer.named_modules() if isinstance(module, nn.Linear)]
        assert sorted(linear) == sorted(family.projections)
        for short in family.expand("all-linear"):
            module = model.get_submodule(family.module_name(index, short))
            assert isinstance(module, nn.Linear)
            assert any(module is layer.get_submodule(path) for path in linear)
    described = describe(model.config.__class__(**model.config.to_dict() | {"architectures": [type(model).__name__]}))
    assert (described.num_layers, described.family) == (3, family)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("mistral", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("glm", "q_proj k_proj v_proj o_proj gate_up_proj down_proj"),
        ("qwen", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
        ("gemma", "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    ],
)
def test_what_a_user_may_write(name: str, expected: str) -> None:
    of_name = [family_of(model.__name__) for key, (_, model, _) in FAMILIES.items() if key.rstrip("234") == name]
    family = of_name[0]
    assert of_name == [family] * len(of_name)
    assert family.name == name
    assert family.expand("all-linear") == expected.split()
    assert family.expand(None) == ["q_proj", "v_proj"]
    assert family.expand("down_proj") == ["down_proj"]
    assert family.expand({"down_proj", "k_proj"}) == ["k_proj", "down_proj"]
    assert family.module_name(11, "o_proj") == "model.layers.11.self_attn.o_proj"


@pytest.mark.parametrize(
    ("architecture", "names", "expected"),
    [
        ("LlamaForCausalLM", ["q_proj", "w_proj"], "unknown projection 'w_proj'; llama has q_proj, .*all-linear"),
        ("GlmForCausalLM", ["gate_proj"], "unknown projection 'gate_proj'; glm has .*gate_up_proj"),
        ("MistralForCausalLM", "self_attn.q_proj", "unknown projection 'self_attn.q_proj'"),
        ("LlamaForCausalLM", [], "no projection is named"),
    ],
)
def test_projections_that_do_not_exist(architecture: str, names: list[str] | str, expected: str) -> None:
    with pytest.raises(FlexoraError) as caught:
        family_of(architecture).expand(names)
    assert len(str(caught.value).splitlines()) == 1
    assert re.search(expected, str(caught.value))


def test_an_unknown_architecture() -> None:
    with pytest.raises(FlexoraError) as caught:
        family_of("GPT2LMHeadModel")
    assert str(caught.value).splitlines() == [
        "backbone.model: architecture GPT2LMHeadModel is not supported; "
        f"known are {', '.join(sorted(model.__name__ for _, model, _ in FAMILIES.values()))}"
    ]


def test_an_architecture_is_registered_once() -> None:
    before = family_of("LlamaForCausalLM")
    with pytest.raises(ValueError, match="LlamaForCausalLM is registered already, by family llama"):
        register(Family("other", ("LlamaForCausalLM",), ("q_proj",)))
    assert family_of("LlamaForCausalLM") is before


def test_a_refused_family_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_REGISTRY", dict(families._REGISTRY))
    with pytest.raises(ValueError, match="registered already"):
        register(Family("half", ("HalfNewForCausalLM", "GlmForCausalLM"), ("q_proj",)))
    with pytest.raises(FlexoraError):
        family_of("HalfNewForCausalLM")
