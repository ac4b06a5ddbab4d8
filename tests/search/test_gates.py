"""Gates in PEFT's scaling: plain LoRA to the bit at alpha = 0, and a gradient that equals autograd's."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from flexora.backbone.adapters import attach
from flexora.backbone.families import family_of
from flexora.errors import FlexoraError
from flexora.scoring.likelihood import token_log_likelihoods
from flexora.search.gates import Gates, gates_of
from flexora.search.inner import SGD
from flexora.search.named import resolve_selection
from flexora.search.units import Units
from tests.search.bilevel import LAYERS, mean_loss, random_batch, set_tensor_gates, toy, warm_up
from tests.tiny import tiny_model


def test_gates_are_exactly_one_at_alpha_zero() -> None:
    for layers in range(1, 131):
        assert torch.equal(gates_of(torch.zeros(layers)), torch.ones(layers)), layers


def test_gates_are_n_softmax() -> None:
    alpha = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(gates_of(alpha), 4 * torch.softmax(alpha, 0), rtol=1e-14, atol=0)


@pytest.mark.parametrize("family", ["llama", "mistral", "glm"])
def test_gates_at_alpha_zero_are_plain_lora_to_the_bit(family: str) -> None:
    model = tiny_model(family).requires_grad_(False)
    known = family_of(type(model).__name__)
    selection = resolve_selection("all", type(model).__name__, LAYERS, known.expand("all-linear"))
    peft_model = attach(model, LoraConfig(r=2, lora_alpha=3), selection, known)
    for name, parameter in peft_model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    gates = Gates(peft_model, known.layers, Units(LAYERS))
    batch = random_batch(0)
    with torch.no_grad():
        plain = token_log_likelihoods(peft_model, batch)
        gates.apply(gates_of(torch.zeros(LAYERS)))
        assert torch.equal(token_log_likelihoods(peft_model, batch), plain)
        gates.apply(gates_of(torch.tensor([1.0, -1.0, 0.5, 0.0])))
        assert not torch.equal(token_log_likelihoods(peft_model, batch), plain)
        gates.restore()
        assert torch.equal(token_log_likelihoods(peft_model, batch), plain)


@pytest.mark.parametrize("family", ["llama", "mistral", "glm"])
def test_gate_gradient_equals_autograd_with_a_tensor_gate(family: str) -> None:
    case = toy(family, SGD(lr=0.5))
    warm_up(case, 4)
    found = case.problem.gradient([random_batch(1), random_batch(2)], train=False, seed=0)

    alpha = case.problem.alpha.clone().requires_grad_()
    set_tensor_gates(case, gates_of(alpha))
    theta = [value.requires_grad_() for value in case.problem.copy_theta()]
    loss = mean_loss(case, [random_batch(1), random_batch(2)], theta, seed=0, train=False)
    expected_alpha, *expected_theta = torch.autograd.grad(loss, [alpha, *theta])

    assert found.loss == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(found.alpha, expected_alpha, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(found.theta, expected_theta, rtol=1e-10, atol=1e-15)
    assert float(found.alpha.abs().max()) > 1e-6


def test_the_cold_start_has_no_direct_gradient() -> None:
    case = toy("llama", SGD(lr=0.5))
    assert not case.problem.gradient([random_batch(1)], train=False, seed=0).alpha.any()


def test_a_variant_with_a_and_b_alone_is_refused() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], alora_invocation_tokens=[5], task_type="CAUSAL_LM")
    peft_model = get_peft_model(tiny_model("llama"), config)
    with pytest.raises(FlexoraError, match=r"computes .*Variant; search needs plain LoRA"):
        Gates(peft_model, "model.layers", Units(LAYERS))


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}], ids=lambda value: next(iter(value)))
def test_more_than_a_and_b_is_refused(settings: dict[str, bool]) -> None:
    model = tiny_model("llama").requires_grad_(False)
    known = family_of("LlamaForCausalLM")
    selection = resolve_selection("all", "LlamaForCausalLM", LAYERS, ["q_proj"])
    peft_model = attach(model, LoraConfig(r=2, **settings), selection, known)
    with pytest.raises(FlexoraError, match="no DoRA"):
        Gates(peft_model, known.layers, Units(LAYERS))
