"""Products with second derivatives of the training loss: ``grad_{alpha, theta} <grad_theta L_train, v>``.

``exact`` differentiates twice. ``difference`` takes gradients at theta + e v and at theta - e v (central), or the first
of them alone and the one at theta, which the inner step was made with (forward): any attention kernel, activation
checkpointing and quantised base will do then, and no graph of second order is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flexora.search.inner import Tensors, global_norm, inner_product

if TYPE_CHECKING:
    from flexora.data.batch import Batch
    from flexora.search.problem import BilevelProblem, Gradient

ProductName = Literal["finite_difference", "forward_difference", "exact"]


@dataclass(frozen=True)
class InnerStep:
    """The inner step over which the walk goes back.

    Attributes:
        theta: Where it started.
        batches: Its micro-batches.
        seed: Seed of its dropout masks.
        gradient: The gradient that it was made with.
        length: How far the longest inner step of the same outer step went, in the Euclidean norm.
    """

    theta: Sequence[Tensor]
    batches: list[Batch]
    seed: int
    gradient: Gradient
    length: float


#: (problem, inner step, direction v) -> the product's parts in alpha and in theta.
Product = Callable[["BilevelProblem", InnerStep, Tensors], tuple[Tensor, Tensors]]


def exact(problem: BilevelProblem, step: InnerStep, direction: Tensors) -> tuple[Tensor, Tensors]:
    """The product by double backward, one micro-batch's graph at a time.

    Fused attention kernels have no double backward, so torch's plain one is used while this runs.
    """
    problem.move(step.theta)

    def derive(part: Tensor) -> list[Tensor]:
        gradients = torch.autograd.grad(part, problem.theta, create_graph=True)
        curved = torch.autograd.grad(inner_product(gradients, direction), problem.theta, materialize_grads=True)
        return [*(gradient.detach() for gradient in gradients), *curved]

    with sdpa_kernel(SDPBackend.MATH):
        _, derived = problem.mean(step.batches, derive, train=True, seed=step.seed)
    gradients, curved = derived[: len(step.theta)], derived[len(step.theta) :]
    return problem.gates.mixed_product(direction, gradients, curved, problem.alpha), curved


def difference(relative_step: float | None, *, central: bool) -> Product:
    """The product by a difference of gradients, at a distance c from theta: ``e = c / |v|``.

    Central, ``[grad L(theta + e v) - grad L(theta - e v)] / 2e``, with an error of second order in e; or forward,
    ``[grad L(theta + e v) - grad L(theta)] / e``, with one of first order.

    Args:
        relative_step: c in lengths of the inner step; by default :func:`default_step`.
        central: Which of them.
    """

    def product(problem: BilevelProblem, step: InnerStep, direction: Tensors) -> tuple[Tensor, Tensors]:
        if step.length == 0:  # nothing moved: every gradient was zero, as of rows learnt by heart
            return torch.zeros_like(problem.alpha), [torch.zeros_like(part) for part in direction]
        relative = relative_step or default_step(problem, central=central)
        e = relative * step.length / global_norm(direction).item()

        def gradient_at(signed: float) -> Gradient:
            problem.move([t.add(d, alpha=signed) for t, d in zip(step.theta, direction, strict=True)])
            return problem.gradient(step.batches, train=True, seed=step.seed)

        ahead = gradient_at(e)
        behind, apart = (gradient_at(-e), 2 * e) if central else (step.gradient, e)
        curved = [(a - b).div_(apart) for a, b in zip(ahead.theta, behind.theta, strict=True)]
        return (ahead.alpha - behind.alpha) / apart, curved

    return product


def default_step(problem: BilevelProblem, *, central: bool) -> float:
    """The relative step where nothing is set: the larger the rounding errors, the longer.

    They are float32's in float64 too: transformers takes norms and softmax in float32.
    """
    if problem.computes_in_less():
        return 1.0
    return 0.1 if central else 0.03
