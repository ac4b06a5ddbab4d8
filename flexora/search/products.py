"""Products with second derivatives of the training loss: ``grad_{alpha, theta} <grad_theta L_train, v>``.

``exact`` differentiates twice. ``finite_difference`` takes two ordinary gradients, so any attention kernel, activation
checkpointing and quantised base will do, and no graph of second order is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flexora.search.inner import Tensors, global_norm, inner_product

if TYPE_CHECKING:
    from flexora.data.batch import Batch
    from flexora.search.problem import BilevelProblem

ProductName = Literal["finite_difference", "exact"]

#: (problem, theta, direction v, micro-batches, seed) -> the product's parts in alpha and in theta.
Product = Callable[["BilevelProblem", Sequence[Tensor], Tensors, "list[Batch]", int], tuple[Tensor, Tensors]]


def exact(
    problem: BilevelProblem, theta: Sequence[Tensor], direction: Tensors, batches: list[Batch], seed: int
) -> tuple[Tensor, Tensors]:
    """The product by double backward, one micro-batch's graph at a time.

    Fused attention kernels have no double backward, so torch's plain one is used while this runs.
    """
    problem.move(theta)

    def derive(part: Tensor) -> list[Tensor]:
        gradients = torch.autograd.grad(part, problem.theta, create_graph=True)
        curved = torch.autograd.grad(inner_product(gradients, direction), problem.theta, materialize_grads=True)
        return [*(gradient.detach() for gradient in gradients), *curved]

    with sdpa_kernel(SDPBackend.MATH):
        _, derived = problem.mean(batches, derive, train=True, seed=seed)
    gradients, curved = derived[: len(theta)], derived[len(theta) :]
    return problem.gates.mixed_product(direction, gradients, curved, problem.alpha), curved


def finite_difference(relative_step: float | None) -> Product:
    """The product by a central difference, ``[grad L(theta + e v) - grad L(theta - e v)] / 2e``, ``e = c / |v|``.

    Args:
        relative_step: The length c of the step in parameter space; by default :func:`default_step`.
    """

    def product(
        problem: BilevelProblem, theta: Sequence[Tensor], direction: Tensors, batches: list[Batch], seed: int
    ) -> tuple[Tensor, Tensors]:
        step = (relative_step or default_step(problem)) / global_norm(direction).item()
        ends = []
        for signed in (step, -step):
            problem.move([t.add(d, alpha=signed) for t, d in zip(theta, direction, strict=True)])
            ends.append(problem.gradient(batches, train=True, seed=seed))
        plus, minus = ends
        curved = [(p - m).div_(2 * step) for p, m in zip(plus.theta, minus.theta, strict=True)]
        return (plus.alpha - minus.alpha) / (2 * step), curved

    return product


def default_step(problem: BilevelProblem) -> float:
    """The step c where nothing is set: the smaller the rounding errors, the shorter."""
    if problem.computes_in_half():
        return 1e-1
    return 1e-4 if problem.theta[0].dtype == torch.float64 else 1e-2
