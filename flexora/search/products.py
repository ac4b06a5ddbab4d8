"""Products with second derivatives of the training loss: ``grad_{alpha, theta} <grad_theta L_train, v>``.

``exact`` differentiates twice. ``finite_difference`` takes two ordinary gradients on either side of theta, and
``forward_difference`` one, beside the one that the inner step was made with: any attention kernel, activation
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
        length: How far it went, in the Euclidean norm.
        gradient: The gradient that it was made with, where a product needs that.
    """

    theta: Sequence[Tensor]
    batches: list[Batch]
    seed: int
    length: float
    gradient: Gradient | None = None


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


def difference(relative_step: float | None) -> Product:
    """The product by a difference of gradients, with ``e = c / |v|``.

    Where the inner step's gradient g is given, the forward one, ``[grad L(theta + e v) - g] / e``, whose error is of
    first order in e; otherwise the central one, ``[grad L(theta + e v) - grad L(theta - e v)] / 2e``, of second.

    Args:
        relative_step: c over the length of the inner step, within which the loss must be smooth, or that would not
            descend; by default :func:`default_step`.
    """

    def product(problem: BilevelProblem, step: InnerStep, direction: Tensors) -> tuple[Tensor, Tensors]:
        relative = relative_step or default_step(problem, central=step.gradient is None)
        e = relative * (step.length or 1.0) / global_norm(direction).item()

        def gradient_at(signed: float) -> Gradient:
            problem.move([t.add(d, alpha=signed) for t, d in zip(step.theta, direction, strict=True)])
            return problem.gradient(step.batches, train=True, seed=step.seed)

        ahead = gradient_at(e)
        behind, apart = (step.gradient, e) if step.gradient else (gradient_at(-e), 2 * e)
        curved = [(a - b).div_(apart) for a, b in zip(ahead.theta, behind.theta, strict=True)]
        return (ahead.alpha - behind.alpha) / apart, curved

    return product


def default_step(problem: BilevelProblem, *, central: bool) -> float:
    """The relative step where nothing is set: the smaller the rounding errors, the shorter."""
    if problem.computes_in_half():
        return 1.0
    if problem.theta[0].dtype == torch.float64:
        return 1e-3 if central else 1e-5
    return 1e-1 if central else 3e-2
