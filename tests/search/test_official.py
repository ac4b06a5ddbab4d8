"""The flag that imitates the paper's code, against a few lines that do what that code does, written anew."""

from __future__ import annotations

import types

import torch
from torch import Tensor

from flexora.search.estimators import SEED_STRIDE, FirstOrder, Unrolled
from flexora.search.inner import AdamW
from flexora.search.schedule import schedule
from tests.search.bilevel import LAYERS, Toy, outer_batch, toy

OUTER_STEPS = 5


def imitate(case: Toy, alpha: Tensor) -> list[Tensor]:
    """Alpha after each outer step: autograd through a gate on the inputs of dropout, A and B; torch's optimisers."""

    def forward(module: types.SimpleNamespace, layer: int, x: Tensor) -> Tensor:
        gate = LAYERS * torch.softmax(alpha, 0)[layer]
        low = module.lora_A.default(gate * module.lora_dropout.default(gate * x))
        return module.base_layer(x) + module.scaling["default"] * module.lora_B.default(gate * low)

    for module, layer in case.sites:
        module.forward = lambda x, module=module, layer=layer: forward(module, layer, x)
    model, theta, ends = case.problem.model, list(case.problem.theta), []
    outer = torch.optim.Adam([alpha], lr=0.01)
    for step in range(OUTER_STEPS):
        batch = outer_batch(1, seed=100 * step)
        (train,), validation = batch["train"][0], batch["validation"][0]
        for data, optimizer, training in (
            (train, torch.optim.AdamW(theta, lr=1e-2, weight_decay=0.0, foreach=False), True),  # a new one: no state
            (validation, outer, False),
        ):
            model.train(training)
            optimizer.zero_grad()
            torch.manual_seed(step * SEED_STRIDE)
            (case.problem.loss_sum(model, data) / data["target"].numel()).backward()
            optimizer.step()
        ends.append(alpha.detach().clone())
    return ends


def test_the_official_flag_is_the_papers_code() -> None:
    theirs = toy("llama", AdamW(lr=1e-2), dropout=0.1)
    expected = imitate(theirs, theirs.problem.alpha.clone().requires_grad_())
    paths = []
    for official in (True, False):
        case = toy("llama", AdamW(lr=1e-2), dropout=0.1)
        alpha = case.problem.alpha.requires_grad_()
        outer = torch.optim.Adam([alpha], lr=0.01)
        path = []
        for step in range(OUTER_STEPS):
            alpha.grad = FirstOrder(official=official)(
                case.problem, outer_batch(1, seed=100 * step), seed=step * SEED_STRIDE
            ).hypergradient
            outer.step()
            path.append(alpha.detach().clone())
        paths.append(path)
    imitated, correct = paths
    torch.testing.assert_close(imitated, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(correct[-1], expected[-1], atol=1e-3)


def test_the_schedule_goes_on_where_the_state_is_forgotten() -> None:
    case = toy("llama", AdamW(lr=1e-2), schedule=schedule("linear", 0.5, 8))
    start = case.problem.copy_theta()
    for step in range(2):
        FirstOrder(official=True)(case.problem, outer_batch(2, seed=step), seed=step)
    assert (case.problem.state.step, case.problem.state.clock) == (1, 4)
    assert not torch.equal(case.problem.copy_theta()[1], start[1])


def test_the_flag_leaves_nothing_behind() -> None:
    batch, found = outer_batch(2), []
    for first in (FirstOrder(official=True), None):
        case = toy("llama", AdamW(lr=1e-2))
        theta, state = case.problem.copy_theta(), case.problem.state
        if first is not None:
            first(case.problem, batch, seed=1)
            case.problem.move(theta)
            case.problem.state = state
        found.append(Unrolled()(case.problem, batch, seed=1).hypergradient)
    assert torch.equal(*found)
