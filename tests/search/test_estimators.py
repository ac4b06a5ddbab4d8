"""Hypergradients against autograd through all inner steps, in float64."""

from __future__ import annotations

import pytest
import torch

from flexora.search.estimators import SEED_STRIDE, FirstOrder, Unrolled
from flexora.search.gates import gates_of
from flexora.search.inner import SGD, AdamW, InnerOptimizer
from tests.search.bilevel import mean_loss, oracle, outer_batch, set_tensor_gates, toy, warm_up

OPTIMIZERS: dict[str, InnerOptimizer] = {
    "sgd": SGD(lr=0.5),
    "momentum": SGD(lr=0.3, momentum=0.9),
    "adamw": AdamW(lr=1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("family", ["llama", "mistral", "glm"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("inner_steps", "warm", "accumulate", "clip", "dropout"),
    [(1, 0, 1, None, 0.0), (2, 1, 2, None, 0.1), (4, 5, 1, 0.05, 0.1)],
    ids=["cold", "accumulated", "clipped"],
)
def test_unrolled_equals_autograd_through_the_inner_steps(
    family: str, optimizer: str, inner_steps: int, warm: int, accumulate: int, clip: float | None, dropout: float
) -> None:
    case = toy(family, OPTIMIZERS[optimizer], clip, dropout)
    warm_up(case, warm)
    batch = outer_batch(inner_steps, accumulate)
    expected = oracle(case, batch, seed=7, stride=SEED_STRIDE)

    found = Unrolled()(case.problem, batch, seed=7)

    assert torch.linalg.norm(found.hypergradient - expected) <= 3e-4 * torch.linalg.norm(expected)
    assert torch.cosine_similarity(found.hypergradient, expected, dim=0) >= 0.99999


def test_unrolled_leaves_the_inner_steps_where_first_order_leaves_them() -> None:
    batch = outer_batch(3)
    ends = []
    for estimator in (FirstOrder(), Unrolled()):
        case = toy("llama", AdamW(lr=1e-2), dropout=0.1)
        estimator(case.problem, batch, seed=1)
        ends.append((case.problem.copy_theta(), case.problem.state))
    (first, first_state), (second, second_state) = ends
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first_state.step == second_state.step == 3
    torch.testing.assert_close(first_state.buffers, second_state.buffers, rtol=0, atol=0)


def test_first_order_is_the_direct_part_alone() -> None:
    case = toy("llama", SGD(lr=0.5))
    warm_up(case, 3)
    batch = outer_batch(2)
    unrolled = oracle(case, batch, seed=1, stride=SEED_STRIDE)
    found = FirstOrder()(case.problem, batch, seed=1)

    alpha = case.problem.alpha.clone().requires_grad_()
    set_tensor_gates(case, gates_of(alpha))
    loss = mean_loss(case, batch["validation"], case.problem.copy_theta(), seed=1, train=False)
    (direct,) = torch.autograd.grad(loss, alpha)
    torch.testing.assert_close(found.hypergradient, direct, rtol=1e-10, atol=1e-14)
    assert torch.linalg.norm(found.hypergradient - unrolled) > 0.01 * torch.linalg.norm(unrolled)
