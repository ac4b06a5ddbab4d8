"""Searches whose answer is known: a quadratic problem with a closed form, and features planted in groups of layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from flexora.data.bilevel import OuterBatch
from flexora.search.estimators import Estimator, FirstOrder, Unrolled
from flexora.search.gates import Gates, gates_of
from flexora.search.inner import SGD, AdamW, ClipByNorm, InnerOptimizer
from flexora.search.problem import BilevelProblem, LossSum
from flexora.search.rules import Positive
from flexora.search.units import Units


class Stack(nn.Module):
    """Layers side by side, each a linear map that reads its own features; the outputs are summed."""

    def __init__(self, layers: int, features: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"proj": nn.Linear(features, outputs, bias=False)}) for _ in range(layers)
        )
        for layer in self.layers:
            nn.init.zeros_(layer["proj"].weight)


def problem_of(stack: Stack, optimizer: InnerOptimizer, loss_sum: LossSum) -> BilevelProblem:
    """A gated problem of a stack, in float64."""
    model = get_peft_model(stack, LoraConfig(r=1, lora_alpha=1, target_modules=["proj"])).double()
    layers = len(stack.layers)
    gates = Gates(model, "layers", Units(layers))
    alpha = torch.zeros(layers, dtype=torch.float64, requires_grad=True)
    return BilevelProblem(model, gates, alpha, optimizer, ClipByNorm(), loss_sum)


def search(problem: BilevelProblem, estimator: Estimator, batches: Any, lr: float) -> Tensor:
    """Adam on alpha over outer batches; the mean of alpha over the last quarter."""
    outer = torch.optim.Adam([problem.alpha], lr=lr)
    path = []
    for seed, batch in enumerate(batches):
        problem.alpha.grad = estimator(problem, batch, seed=1_000_000 * seed).hypergradient
        outer.step()
        path.append(problem.alpha.detach().clone())
    return torch.stack(path[-len(path) // 4 :]).mean(0)


def test_alpha_converges_to_the_optimum_in_closed_form() -> None:
    """Inner loss 1/2 sum (g_i b_i - 1)^2 with an L2 penalty mu on b: b_i = g_i / (g_i^2 + mu), s_i = g_i b_i.

    Outer loss 1/2 sum (s_i - t_i)^2 under sum g_i = n. Its optimum g* is where (s_i - t_i) ds_i/dg_i is the same for
    all i, so targets t_i = s(g*_i) + c / s'(g*_i), with s' = 2 mu g / (g^2 + mu)^2, put it wherever we like.
    """
    mu, pull = 0.5, 0.02
    wanted = torch.tensor([0.4, 1.4, 0.7, 1.5], dtype=torch.float64)
    slope = 2 * mu * wanted / (wanted**2 + mu) ** 2
    targets = wanted**2 / (wanted**2 + mu) + pull / slope

    def loss_sum(model: Any, batch: Any) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        goals = targets if batch["validation"] else torch.ones(4, dtype=torch.float64)
        for layer, goal in zip(model.get_base_model().layers, goals, strict=True):
            proj = layer["proj"]
            a, b = proj.lora_A.default.weight, proj.lora_B.default.weight
            # A takes no part; it is in the graph, as every parameter of a model is.
            total = total + 0.5 * (proj.scaling["default"] * b.sum() - goal) ** 2 + 0.0 * a.sum()
        return total

    def step(validation: bool) -> Any:
        return {"validation": validation, "target": torch.zeros(1), "contrast": False, "rows": torch.zeros(1)}

    batch = OuterBatch(outer_step=0, train=[[step(False)]] * 10, validation=[step(True)])
    found = {}
    for estimator in (Unrolled(), FirstOrder()):
        problem = problem_of(Stack(4, 1, 1), SGD(lr=0.5, weight_decay=mu), loss_sum)
        found[type(estimator)] = gates_of(search(problem, estimator, [batch] * 100, lr=0.06))
    torch.testing.assert_close(found[Unrolled], wanted, rtol=0, atol=2e-3)
    assert float((found[FirstOrder] - wanted).abs().max()) > 0.05  # the direct part alone ends elsewhere


GROUP = 3


def planted_loss(model: Any, batch: Any) -> Tensor:
    """Cross-entropy of the summed outputs; the first layers read the first half of the features, the others not."""
    layers = model.get_base_model().layers
    halves = batch["input_ids"].chunk(2, dim=1)
    logits = sum(layer["proj"](halves[place // GROUP]) for place, layer in enumerate(layers))
    return F.cross_entropy(logits, batch["target"], reduction="sum")


def planted_batch(generator: torch.Generator, *, validation: bool, rows: int = 32) -> Any:
    """Labels that the first half of the features tells in training alone, and the second half always, less surely."""
    labels = torch.randint(0, 2, (rows,), generator=generator)
    noise = torch.randn(rows, 8, generator=generator, dtype=torch.float64)
    signs = (2.0 * labels - 1.0).double()
    noise[:, 4] += signs
    if not validation:
        noise[:, 0] += 1.5 * signs
    return {"input_ids": noise, "target": labels, "contrast": False, "rows": torch.arange(len(labels))}


def planted_choice(estimator: Estimator, seed: int) -> list[int]:
    """The layers that a short search chooses."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    problem = problem_of(Stack(2 * GROUP, 4, 2), AdamW(lr=0.02), planted_loss)
    batches = [
        OuterBatch(
            outer_step=step,
            train=[[planted_batch(generator, validation=False)] for _ in range(4)],
            validation=[planted_batch(generator, validation=True)],
        )
        for step in range(40)
    ]
    alpha = search(problem, estimator, batches, lr=0.05)
    return Positive()(alpha.tolist(), [1] * len(alpha))


@pytest.mark.parametrize("seed", range(5))
def test_unrolled_chooses_the_layers_that_generalise(seed: int) -> None:
    assert planted_choice(Unrolled(), seed) == [3, 4, 5]
