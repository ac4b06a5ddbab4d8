"""Gradients inside Lightning's autocast, where theta moves between two forward passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel

from flexora.backbone.adapters import attach
from flexora.backbone.families import family_of
from flexora.scoring.likelihood import answer_loss
from flexora.search.estimators import SEED_STRIDE, Unrolled
from flexora.search.gates import Gates
from flexora.search.inner import SGD, AdamW, ClipByNorm
from flexora.search.named import resolve_selection
from flexora.search.problem import BilevelProblem
from flexora.search.products import default_step
from flexora.search.units import Units
from tests.search.bilevel import LAYERS, outer_batch, random_batch, toy
from tests.tiny import FAMILIES, tiny_model


def half_problem(base: torch.dtype) -> BilevelProblem:
    """A float32 adapter on a base of another precision."""
    model = tiny_model("llama").to(base).requires_grad_(False)
    family = family_of("LlamaForCausalLM")
    selection = resolve_selection("all", "LlamaForCausalLM", LAYERS, family.expand(None))
    torch.manual_seed(0)
    peft_model = attach(model, LoraConfig(r=2, lora_alpha=4), selection, family)
    gates = Gates(peft_model, family.layers, Units(LAYERS))
    return BilevelProblem(peft_model, gates, torch.zeros(LAYERS), AdamW(lr=1e-2), ClipByNorm(), answer_loss)


def test_a_step_is_seen_inside_one_autocast_block() -> None:
    """Autocast keeps cast weights until its block ends; a stale cache would show the old theta."""
    batches = [random_batch(1)]
    problem = half_problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for step in range(5):
            problem.inner_step(batches, seed=step)
        inside = problem.gradient(batches, train=False, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        fresh = problem.gradient(batches, train=False, seed=0)
    assert inside.loss == fresh.loss
    torch.testing.assert_close(inside.theta, fresh.theta, rtol=0, atol=0)


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
def test_adapter_and_alpha_stay_in_float32(base: torch.dtype) -> None:
    problem = half_problem(base)
    with torch.autocast("cpu", torch.bfloat16):
        assert problem.computes_in_less()
        step = Unrolled()(problem, outer_batch(2), seed=0)
    assert step.hypergradient.dtype == torch.float32
    assert step.hypergradient.isfinite().all()
    assert {tensor.dtype for tensor in problem.theta} == {torch.float32}
    assert {tensor.dtype for kept in problem.state.buffers for tensor in kept} == {torch.float32}
    assert problem.computes_in_less() == (base == torch.bfloat16)


@pytest.mark.parametrize(
    ("device", "dtype", "precision", "expected"),
    [
        ("cuda", torch.float32, "high", True),
        ("cuda", torch.float32, "medium", True),
        ("cuda", torch.float32, "highest", False),
        ("cuda", torch.float64, "high", False),
        ("cpu", torch.float32, "high", False),
    ],
)
def test_tf32_is_less_than_float32(device: str, dtype: torch.dtype, precision: str, expected: bool) -> None:
    problem: Any = half_problem(torch.float32)
    problem.alpha = SimpleNamespace(device=torch.device(device), dtype=dtype)
    usual = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert problem.computes_in_less() == expected
        assert default_step(problem, central=True) == (1.0 if expected else 0.1)
    finally:
        torch.set_float32_matmul_precision(usual)


def test_autocast_does_not_round_the_gradient_of_alpha() -> None:
    problem = half_problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for step in range(5):
            problem.inner_step([random_batch(step)], seed=step)
        found = problem.gradient([random_batch(1)], train=False, seed=0)
    products = torch.zeros(LAYERS, dtype=torch.float64)
    names = [name for name, parameter in problem.model.named_parameters() if parameter.requires_grad]
    for name, value, gradient in zip(names, problem.theta, found.theta, strict=True):
        if ".lora_B." in name:
            layer = int(name.split("layers.")[1].split(".")[0])
            products[layer] += (value.detach().double() * gradient.double()).sum()
    expected = products - products.mean()  # all gates are 1
    assert torch.linalg.norm(found.alpha.double() - expected) <= 1e-5 * torch.linalg.norm(expected)


def test_micro_batches_add_up_to_the_joint_batch() -> None:
    """Means of sums over the joint number of tokens, never means of means."""
    case = toy("llama", SGD(lr=0.5))
    case.problem.inner_step([random_batch(0)], seed=0)
    parts = [random_batch(1, rows=1), random_batch(2, rows=4)]
    together = case.problem.gradient(parts, train=False, seed=0)
    single = [case.problem.gradient([part], train=False, seed=0) for part in parts]
    tokens = [part["target"].numel() for part in parts]
    assert tokens[0] != tokens[1]
    for name in ("loss", "alpha"):
        mean = sum(n * getattr(part, name) for n, part in zip(tokens, single, strict=True)) / sum(tokens)
        torch.testing.assert_close(
            torch.as_tensor(getattr(together, name)), torch.as_tensor(mean), rtol=1e-10, atol=1e-14
        )


def test_dropout_replays_by_seed_and_leaves_the_generator_alone() -> None:
    case = toy("llama", SGD(lr=0.5), dropout=0.5)
    for step in range(3):
        case.problem.inner_step([random_batch(0)], seed=step)
    state = torch.get_rng_state()
    first, again, other = (
        case.problem.gradient([random_batch(1)], train=True, seed=seed).loss for seed in (7, 7, 7 + SEED_STRIDE)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_layers_recompute_on_both_levels(family: str, train: bool) -> None:
    """Otherwise the validation gradient would need the memory that checkpointing is there to save."""
    case = toy(family, SGD(lr=0.5), dropout=0.2)
    for step in range(2):
        case.problem.inner_step([random_batch(0)], seed=step)
    model = case.problem.model
    assert isinstance(model, PeftModel)
    plain = case.problem.gradient([random_batch(1)], train=train, seed=3)
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls: list[bool] = []
    case.sites[-1][0].register_forward_hook(lambda module, *_: calls.append(module.training))
    checkpointed = case.problem.gradient([random_batch(1)], train=train, seed=3)
    assert calls == [train, train]
    torch.testing.assert_close(checkpointed.theta, plain.theta, rtol=0, atol=0)
    torch.testing.assert_close(checkpointed.alpha, plain.alpha, rtol=0, atol=0)
