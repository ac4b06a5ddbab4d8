"""Hypergradients against autograd through all inner steps, in float64."""

from __future__ import annotations

from typing import Any, get_args
from unittest.mock import Mock

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from flexora.data.bilevel import OuterBatch
from flexora.errors import FlexoraError
from flexora.scoring.likelihood import answer_loss
from flexora.search.estimators import SEED_STRIDE, Estimator, FirstOrder, Unrolled, cosine
from flexora.search.gates import gates_of
from flexora.search.inner import SGD, AdamW, InnerOptimizer
from flexora.search.products import ProductName, default_step
from flexora.search.schedule import schedule
from tests.search.bilevel import LAYERS, Toy, mean_loss, oracle, outer_batch, set_tensor_gates, toy, warm_up
from tests.tiny import FAMILIES, PAPER

pytestmark = pytest.mark.usefixtures("float64_throughout")  # eager attention takes its softmax in float32

OPTIMIZERS: dict[str, InnerOptimizer] = {
    "sgd": SGD(lr=0.5),
    "momentum": SGD(lr=0.3, momentum=0.9),
    "adamw": AdamW(lr=1e-2, weight_decay=0.1),
}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return (torch.linalg.norm(found - expected) / torch.linalg.norm(expected)).item()


def require_all_products(case: Toy, batch: OuterBatch) -> None:
    """Compare all products with autograd through the unrolled steps, from one and the same point."""
    start, state = case.problem.copy_theta(), case.problem.state
    expected = oracle(case, batch, seed=7, stride=SEED_STRIDE)
    exact = Unrolled(product="exact")(case.problem, batch, seed=7).hypergradient
    assert relative_error(exact, expected) <= 1e-9
    steps: dict[ProductName, float] = {"finite_difference": 1e-3, "forward_difference": 1e-5}
    for product, relative_step in steps.items():  # shorter than the defaults, which float32's rounding asks for
        case.problem.move(start)
        case.problem.state = state
        difference = Unrolled(product, relative_step=relative_step)(case.problem, batch, seed=7).hypergradient
        assert relative_error(difference, expected) <= 3e-4
        assert cosine(difference, expected) >= 0.99999


#: Every combination on llama. What a family brings is the same at each step and for each optimiser: on the paper's
#: others every optimiser with every number of steps, and either with every number of warm steps; on the rest one.
GRID = [
    (family, optimizer, inner_steps, warm)
    for family in PAPER
    for i, optimizer in enumerate(OPTIMIZERS)
    for j, inner_steps in enumerate([1, 2, 4, 8])
    for k, warm in enumerate([0, 1, 20])
    if family == "llama" or (i + j) % 3 == k
] + [(family, "adamw", 2, 1) for family in FAMILIES if family not in PAPER]


@pytest.mark.parametrize(("family", "optimizer", "inner_steps", "warm"), GRID)
def test_unrolled_equals_autograd_through_the_inner_steps(
    family: str, optimizer: str, inner_steps: int, warm: int
) -> None:
    """With all that an inner step can have at once: dropout, accumulation, clipping that bites, and a schedule."""
    factors = schedule("cosine", 0.0, 40)
    case = toy(family, OPTIMIZERS[optimizer], clip=0.05, dropout=0.1, schedule=factors)
    warm_up(case, warm)
    require_all_products(case, outer_batch(inner_steps, accumulate=2))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_unrolled_without_dropout_and_clipping(optimizer: str) -> None:
    case = toy("llama", OPTIMIZERS[optimizer])
    warm_up(case, 5)
    require_all_products(case, outer_batch(3))


def test_unrolled_with_a_gate_for_each_projection() -> None:
    case = toy("llama", OPTIMIZERS["adamw"], modulewise=True)
    warm_up(case, 5)
    batch = outer_batch(2)
    assert oracle(case, batch, seed=7, stride=SEED_STRIDE).shape == (LAYERS, 2)
    require_all_products(case, batch)


def test_unrolled_with_checkpointed_layers() -> None:
    case = toy("llama", OPTIMIZERS["adamw"], dropout=0.1)
    warm_up(case, 5)
    batch = outer_batch(2)
    expected = oracle(case, batch, seed=7, stride=SEED_STRIDE)
    model = case.problem.model
    assert isinstance(model, PeftModel)
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert relative_error(Unrolled(product="exact")(case.problem, batch, seed=7).hypergradient, expected) <= 1e-9


@pytest.mark.parametrize("product", get_args(ProductName))
def test_a_step_without_learning_rate_passes_nothing_back(product: ProductName) -> None:
    case = toy("llama", AdamW(lr=1e-2), schedule=schedule("linear", 0.5, 2))
    found = Unrolled(product=product)(case.problem, outer_batch(1), seed=7)
    assert not found.hypergradient.any()
    assert cosine(found.hypergradient, found.hypergradient) is None


@pytest.mark.parametrize("product", get_args(ProductName))
def test_rows_that_are_learnt_by_heart_pass_nothing_back(product: ProductName) -> None:
    """Their gradient rounds to zero; the length of the inner step, which scales the differences, is zero then."""
    case = toy("llama", SGD(lr=0.5))
    warm_up(case, 3)
    case.problem.loss_sum = lambda model, batch: answer_loss(model, batch) * (0.0 if model.training else 1.0)
    found = Unrolled(product)(case.problem, outer_batch(2), seed=7)
    assert found.direct.any()
    assert torch.equal(found.hypergradient, found.direct)


@pytest.mark.parametrize(
    ("estimator", "gradients"),
    [
        (FirstOrder(), 4 + 1),
        (Unrolled(), 3 * 4 + 1),
        (Unrolled("forward_difference"), 2 * 4 + 1),
        (Unrolled(last=1), 4 + 1 + 2),
        (Unrolled("forward_difference", last=1), 4 + 1 + 1),
    ],
)
def test_the_price_of_an_outer_step(estimator: Estimator, gradients: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = toy("llama", AdamW(lr=1e-2))
    warm_up(case, 1)
    taken = Mock(side_effect=case.problem.gradient)
    monkeypatch.setattr(case.problem, "gradient", taken)
    estimator(case.problem, outer_batch(4), seed=7)
    assert taken.call_count == gradients


def test_differences_are_taken_further_away_where_rounding_is_coarse() -> None:
    problem = toy("llama", SGD(lr=0.5)).problem
    assert default_step(problem, central=True) == 0.1
    assert default_step(problem, central=False) == 0.03
    with torch.autocast("cpu", torch.bfloat16):
        assert default_step(problem, central=True) == default_step(problem, central=False) == 1


def test_an_unknown_product_is_refused() -> None:
    with pytest.raises(FlexoraError, match="guess is unknown; give finite_difference or forward_difference or exact"):
        Unrolled(product="guess")  # type: ignore[arg-type]


def test_truncation_walks_back_the_last_steps_alone() -> None:
    """The last k steps from where the others led, with theta there held constant."""
    batch = outer_batch(4)
    case = toy("llama", OPTIMIZERS["adamw"])
    warm_up(case, 5)
    for t in range(2):
        case.problem.inner_step(batch["train"][t], 7 + t * SEED_STRIDE)
    tail = OuterBatch(outer_step=0, train=batch["train"][2:], validation=batch["validation"])
    expected = oracle(case, tail, seed=7 + 2 * SEED_STRIDE, stride=SEED_STRIDE)
    again = toy("llama", OPTIMIZERS["adamw"])
    warm_up(again, 5)
    found = Unrolled(product="exact", last=2)(again.problem, batch, seed=7)
    assert relative_error(found.hypergradient, expected) <= 1e-9


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


def test_the_cosine_is_taken_where_there_is_float64() -> None:
    """Apple's GPUs have none: a tensor that lies there may be widened only once it is fetched."""

    class OnMps(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is Tensor.double:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
            found = super().__torch_function__(func, types, args, kwargs or {})
            return found.as_subclass(Tensor) if func is Tensor.cpu else found

    left, right = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    assert cosine(left.as_subclass(OnMps), right.as_subclass(OnMps)) == pytest.approx(1 / 50**0.5)
