"""Inner optimisers against torch's, to the bit, and their pullback against autograd."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from flexora.search.inner import SGD, AdamW, ClipByNorm, InnerOptimizer
from flexora.search.schedule import ScheduleName, schedule

CASES: list[tuple[InnerOptimizer, type[torch.optim.Optimizer], dict[str, float]]] = [
    (SGD(lr=0.1), torch.optim.SGD, {"lr": 0.1}),
    (SGD(lr=0.1, momentum=0.9), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (SGD(lr=0.1, momentum=0.9, weight_decay=0.2), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}),
    (AdamW(lr=3e-3), torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.0}),
    (AdamW(lr=3e-3, weight_decay=0.1), torch.optim.AdamW, {"lr": 3e-3, "weight_decay": 0.1}),
]


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize(
    ("optimizer", "reference", "options"), CASES, ids=["sgd", "momentum", "sgd-decay", "adamw", "adamw-decay"]
)
def test_updates_equal_torch_to_the_bit(
    optimizer: InnerOptimizer, reference: type[torch.optim.Optimizer], options: dict[str, float], clip: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    theta = [torch.randn(5, 3, generator=generator), torch.randn(7, generator=generator)]
    parameters = [torch.nn.Parameter(value.clone()) for value in theta]
    peer = reference(parameters, foreach=False, **options)  # type: ignore[call-arg]
    state = optimizer.init(theta)
    for step in range(12):
        gradients = [torch.randn(value.shape, generator=generator) for value in theta]
        if step < 3:
            gradients[0][0] = 0.0  # entries whose second moment is still zero
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip, foreach=False)
        peer.step()
        theta, state = optimizer.update(theta, ClipByNorm(clip)(gradients), state)
        for mine, other in zip(theta, parameters, strict=True):
            assert torch.equal(mine, other.detach()), step


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_schedules_equal_those_of_transformers_to_the_bit(name: ScheduleName) -> None:
    optimizer, factors = AdamW(lr=3e-3), schedule(name, 0.25, 12)
    parameter = torch.nn.Parameter(torch.ones(3))
    peer = torch.optim.AdamW([parameter], lr=3e-3, weight_decay=0.0, foreach=False)
    kind = {"constant": get_constant_schedule_with_warmup, "linear": get_linear_schedule_with_warmup}
    make = kind.get(name, get_cosine_schedule_with_warmup)
    scheduler = make(peer, 3) if name == "constant" else make(peer, 3, 12)
    theta, state, generator = [torch.ones(3)], optimizer.init([parameter]), torch.Generator().manual_seed(0)
    for step in range(12):
        parameter.grad = torch.randn(3, generator=generator)
        theta, state = optimizer.update(theta, [parameter.grad], state, factors(state.step))
        peer.step()
        scheduler.step()
        assert torch.equal(theta[0], parameter.detach()), step
    assert factors(0) == 0.0


def test_a_second_moment_of_zero_passes_no_gradient_back() -> None:
    optimizer = AdamW(lr=1e-3)
    theta = [torch.ones(2, dtype=torch.float64)]
    gradient = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    state = optimizer.init(theta)
    _, new_state = optimizer.update(theta, gradient, state)
    back, to_gradient, to_buffers = optimizer.pullback(theta, gradient, state, theta, new_state.zeros())
    assert torch.equal(back[0], torch.ones(2, dtype=torch.float64))
    assert to_gradient[0][0] == 0.0
    assert to_gradient[0].isfinite().all()
    assert to_buffers[0][0][0] == 0.0


@pytest.mark.parametrize("max_norm", [None, 0.3, 100.0], ids=["off", "active", "idle"])
def test_clipping_pulls_back_as_autograd_does(max_norm: float | None) -> None:
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(4, 2, generator=generator, dtype=torch.float64) for _ in range(2)]
    cotangents = [torch.randn(4, 2, generator=generator, dtype=torch.float64) for _ in range(2)]
    clip = ClipByNorm(max_norm)
    leaves = [gradient.clone().requires_grad_() for gradient in gradients]
    expected = torch.autograd.grad(clip(leaves), leaves, cotangents)
    torch.testing.assert_close(clip.pullback(gradients, cotangents), list(expected), rtol=1e-12, atol=1e-15)
