"""A base model in 4 bits, against the same weights in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from flexora.backbone import loading
from flexora.backbone.adapters import attach
from flexora.backbone.families import family_of
from flexora.backbone.loading import Backbone
from flexora.errors import FlexoraError
from flexora.scoring.likelihood import answer_loss
from flexora.search.estimators import Unrolled
from flexora.search.gates import Gates
from flexora.search.inner import AdamW, ClipByNorm
from flexora.search.named import resolve_selection
from flexora.search.problem import BilevelProblem
from flexora.search.units import Units
from tests.search.bilevel import LAYERS, outer_batch


def hypergradient(base: PreTrainedModel) -> torch.Tensor:
    """The hypergradient of two outer steps."""
    architecture = type(base).__name__
    family = family_of(architecture)
    selection = resolve_selection("all", architecture, LAYERS, family.expand("all-linear"))
    torch.manual_seed(1)
    model = attach(base, LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1), selection, family)
    gates = Gates(model, family.layers, Units(LAYERS))
    problem = BilevelProblem(model, gates, torch.zeros(LAYERS), AdamW(lr=1e-2), ClipByNorm(1.0), answer_loss)
    steps = [Unrolled()(problem, outer_batch(3, seed=100 * step), seed=step).hypergradient for step in range(2)]
    return steps[-1]


@pytest.mark.parametrize("family", ["llama", "mistral", "glm"])
def test_the_search_sees_the_quantised_weights(tiny_models: dict[str, Path], family: str) -> None:
    backbone = Backbone(str(tiny_models[family]), quantization="nf4")
    quantised = backbone.load_model()
    assert quantised.model.layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    found = hypergradient(quantised)
    expected = hypergradient(backbone.load_model().dequantize().requires_grad_(False))
    full = hypergradient(Backbone(str(tiny_models[family])).load_model())
    assert torch.linalg.norm(found - expected) <= 1e-3 * torch.linalg.norm(expected)
    assert torch.linalg.norm(found - full) > 1e-2 * torch.linalg.norm(full)


def test_inference_leaves_training_as_it_is(tiny_models: dict[str, Path]) -> None:
    """On a CPU with bfloat16, bitsandbytes would go over to weights that no gradient passes."""
    model = Backbone(str(tiny_models["llama"]), quantization="nf4").load_model()
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def gradient() -> torch.Tensor:
        (found,) = torch.autograd.grad(model.model.layers[1].mlp(states).square().sum(), states)
        return found

    before = gradient()
    with torch.no_grad():
        model.eval()(torch.arange(8)[None])
    assert torch.equal(gradient(), before)


def test_without_bitsandbytes_the_remedy_is_named(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(FlexoraError, match=r"flexora\[4bit\]"):
        Backbone(str(tiny_models["llama"]), quantization="nf4").load_model()
