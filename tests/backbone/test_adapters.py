"""Adapters sit on exactly the chosen modules, and plain PEFT loads them back to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_layer_status
from transformers import PreTrainedModel

from flexora.backbone.adapters import adapter_size, attach, trainable_parameters
from flexora.backbone.families import Family, family_of
from flexora.errors import FlexoraError
from flexora.search.selection import Selection, SelectionBase
from tests.tiny import FAMILIES, PAPER, tiny_model

RANK = 3


def selection_of(model: PreTrainedModel, targets: dict[int, list[str]]) -> Selection:
    base = SelectionBase(architecture=type(model).__name__, num_layers=model.config.num_hidden_layers)
    return Selection(base=base, layers=sorted(targets), targets=targets)


def attached(model: PreTrainedModel, targets: dict[int, list[str]], **settings: Any) -> PeftModel:
    """An adapter with random weights on both sides, so that it changes the logits."""
    config = LoraConfig(r=RANK, lora_alpha=8, **settings)
    peft_model = attach(model, config, selection_of(model, targets), family_of(type(model).__name__))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return peft_model


def adapted(model: PeftModel) -> set[str]:
    return {status.name.removeprefix("model.") for status in get_layer_status(model)}


def names(family: Family, targets: dict[int, list[str]]) -> set[str]:
    return {family.module_name(layer, name) for layer, projections in targets.items() for name in projections}


def sizes(model: PreTrainedModel, wanted: set[str]) -> int:
    """Parameters of LoRA on these linear layers: r (in + out) of each."""
    modules = [model.get_submodule(name) for name in wanted]
    return sum(RANK * (module.in_features + module.out_features) for module in modules)


def targets_of(family: Family, kind: str) -> dict[int, list[str]]:
    return {
        "one layer": {3: family.expand(None)},
        "first layer": {0: ["o_proj"]},
        "two of four": {1: family.expand("all-linear"), 3: family.expand("all-linear")},
        "all layers": {layer: family.expand("all-linear") for layer in range(4)},
        "module-wise": {0: ["q_proj"], 2: ["v_proj"]},
        "uneven": {1: ["down_proj"], 2: ["q_proj", "k_proj", "down_proj"]},
    }[kind]


KINDS = ["one layer", "first layer", "two of four", "all layers", "module-wise", "uneven"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_exactly_the_chosen_modules_are_adapted(name: str, kind: str) -> None:
    model = tiny_model(name)
    family = family_of(type(model).__name__)
    targets = targets_of(family, kind)
    wanted = names(family, targets)
    expected = sizes(model, wanted)
    peft_model = attached(model, targets)
    assert adapted(peft_model) == wanted
    assert trainable_parameters(peft_model) == expected
    assert adapter_size(peft_model) == (len(targets), expected)
    for parameter_name, parameter in peft_model.named_parameters():
        assert parameter.requires_grad == ("lora_" in parameter_name), parameter_name
    assert peft_model.training


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_with_the_same_projections_have_the_same_size(name: str) -> None:
    family = family_of(FAMILIES[name][1].__name__)
    layer = family.expand("all-linear")
    one, three = (attached(tiny_model(name), dict.fromkeys(chosen, layer)) for chosen in ([2], [0, 1, 3]))
    assert trainable_parameters(three) == 3 * trainable_parameters(one)


def test_a_fresh_adapter_changes_nothing_until_it_learns() -> None:
    ids = torch.arange(20)[None]
    plain = tiny_model("llama").eval()
    expected = plain(ids).logits
    peft_model = attach(plain, LoraConfig(r=RANK), selection_of(plain, {1: ["q_proj"]}), family_of("LlamaForCausalLM"))
    assert torch.equal(peft_model.eval()(ids).logits, expected)


def test_the_adapter_is_float32_on_a_bfloat16_base() -> None:
    model = tiny_model("llama").bfloat16()
    peft_model = attached(model, {1: ["q_proj"], 2: ["v_proj"]})
    kinds = {("lora_" in name, parameter.dtype) for name, parameter in peft_model.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


def test_the_users_configuration_stays_as_it_is() -> None:
    config = LoraConfig(r=RANK, target_modules=["q_proj"])
    model = tiny_model("llama")
    attach(model, config, selection_of(model, {1: ["v_proj"]}), family_of("LlamaForCausalLM"))
    assert config.target_modules == {"q_proj"}
    assert config.task_type is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"layers_to_transform": [1]}, "layers_to_transform and layers_pattern are set by the selection"),
        ({"layers_to_transform": []}, "layers_to_transform and layers_pattern are set by the selection"),
        ({"layers_pattern": "layers"}, "layers_to_transform and layers_pattern are set by the selection"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens: an activated LoRA would stay switched off"),
        ({"exclude_modules": r".*layers\.0.*"}, r"PEFT adapted 1 modules where 2 were asked, e.g. model\.layers\.0\."),
    ],
    ids=["layers", "no layers", "pattern", "activated", "excluded"],
)
def test_what_would_adapt_other_modules_is_refused(settings: dict[str, Any], expected: str) -> None:
    model = tiny_model("llama")
    config = LoraConfig(r=RANK, target_modules=["q_proj"])
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(FlexoraError, match=expected) as caught:
        attach(model, config, selection_of(model, {0: ["q_proj"], 1: ["q_proj"]}), family_of("LlamaForCausalLM"))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("layers", "chosen", "projections"),
    [
        (4, [1, 3], None),
        (4, [1, 3], "all-linear"),
        (12, [1], None),  # layers.1 must not bring layers.10 and layers.11 with it
        (12, [11], None),
        (12, [1, 2, 3, 11], "all-linear"),  # more than 20 modules: PEFT shortens their names
        (12, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11], None),  # 10 alone is left out
        (24, [*range(2, 13), 20], None),
    ],
    ids=lambda value: str(value).replace(" ", "") if isinstance(value, list) else None,
)
@pytest.mark.parametrize("name", PAPER)
def test_plain_peft_loads_a_saved_adapter_to_the_bit(
    name: str, layers: int, chosen: list[int], projections: str | None, tmp_path: Path
) -> None:
    ids = torch.arange(2 * 20).reshape(2, 20)
    base = tiny_model(name, layers).eval()
    plain = base(ids).logits
    family = family_of(type(base).__name__)
    targets = {layer: family.expand(projections) for layer in chosen}
    peft_model = attached(base, targets).eval()
    assert adapted(peft_model) == names(family, targets)
    expected = peft_model(ids).logits
    peft_model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(name, layers), tmp_path).eval()
    assert adapted(loaded) == names(family, targets)
    assert adapter_size(loaded) == adapter_size(peft_model)
    assert torch.equal(loaded(ids).logits, expected)
    assert not torch.allclose(expected, plain)
