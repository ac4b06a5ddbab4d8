"""Hypergradient estimators: d L_val(theta_T(alpha), alpha) / d alpha, behind one small interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flexora.errors import FlexoraError
from flexora.search.inner import Tensors, global_norm

if TYPE_CHECKING:
    from flexora.data.batch import Batch
    from flexora.data.bilevel import OuterBatch
    from flexora.search.problem import BilevelProblem

#: Seeds of successive gradients lie this far apart, so that each micro-batch in between has a seed of its own.
SEED_STRIDE = 1_000


@dataclass(frozen=True)
class OuterStep:
    """What an estimator found: the hypergradient (``[n]``), its direct part (``[n]``), and mean losses in nats."""

    hypergradient: Tensor
    direct: Tensor
    train_loss: float
    validation_loss: float


class Estimator(ABC):
    """Runs the T inner steps of one outer step and estimates the hypergradient at their end."""

    @abstractmethod
    def __call__(self, problem: BilevelProblem, batch: OuterBatch, seed: int) -> OuterStep:
        """Move ``problem`` on by the inner steps of ``batch``.

        Args:
            problem: The bilevel problem; theta and the inner optimiser's state are advanced.
            batch: Data of one outer step.
            seed: Seed of this outer step's dropout masks.
        """


class FirstOrder(Estimator):
    """The direct gradient alone: theta_T is held constant. Cost T + 1 gradients, memory of plain LoRA.

    This is what the official code of the paper computes.
    """

    def __call__(self, problem: BilevelProblem, batch: OuterBatch, seed: int) -> OuterStep:
        """Inner steps, then one gradient of the validation loss."""
        losses = [problem.inner_step(micro, seed + t * SEED_STRIDE).loss for t, micro in enumerate(batch["train"])]
        outer = problem.gradient(batch["validation"], train=False, seed=seed)
        return OuterStep(outer.alpha, outer.alpha, sum(losses) / len(losses), outer.loss)


class Unrolled(Estimator):
    """Unrolled differentiation through all T inner steps, at the memory of plain LoRA.

    theta is tiny, so the T gradients are kept, and the trajectory is walked back one step at a time; theta and the
    optimiser's moments are rebuilt elementwise from the start of the outer step:

        (h, lam) = grad_{alpha, theta} L_val(theta_T, alpha)
        for t = T-1 .. 0:
            lam, lam_g = pullback of theta_{t+1} = U_t(theta_t, g_t) at lam
            h, lam    += grad_{alpha, theta} <grad_theta L_train(theta_t, alpha), lam_g>

    The product in the last line is a central difference,
    ``[grad L(theta_t + e lam_g) - grad L(theta_t - e lam_g)] / 2e`` with ``e = c / |lam_g|``. It runs the ordinary
    backward pass only, so any attention kernel and activation checkpointing will do. Cost 3T + 1 gradients.

    Args:
        relative_step: The length c of the step in parameter space. By default 1e-2; 1e-1 where the model computes in
            bfloat16 (autocast, or a half-precision base), 1e-4 where theta is float64. Smaller steps drown in
            rounding, larger ones in curvature.
    """

    def __init__(self, relative_step: float | None = None) -> None:
        if relative_step is not None and not relative_step > 0:
            raise FlexoraError(f"search.estimator.relative_step: {relative_step} must be positive")
        self.relative_step = relative_step

    def __call__(self, problem: BilevelProblem, batch: OuterBatch, seed: int) -> OuterStep:
        """Inner steps with their gradients kept, one validation gradient, and the way back."""
        start, start_state = problem.copy_theta(), problem.state
        steps = [problem.inner_step(micro, seed + t * SEED_STRIDE) for t, micro in enumerate(batch["train"])]
        gradients = [step.theta for step in steps]
        end = problem.copy_theta()
        outer = problem.gradient(batch["validation"], train=False, seed=seed)
        hypergradient, cotangent, state_cotangent = outer.alpha, outer.theta, problem.state.zeros()
        for t in reversed(range(len(steps))):
            theta, state = problem.replay(start, start_state, gradients[:t])
            cotangent, gradient_cotangent, state_cotangent = problem.optimizer.pullback(
                theta, problem.clip(gradients[t]), state, cotangent, state_cotangent
            )
            direction = problem.clip.pullback(gradients[t], gradient_cotangent)
            mixed, curved = self._product(problem, theta, direction, batch["train"][t], seed + t * SEED_STRIDE)
            hypergradient = hypergradient + mixed
            cotangent = [a + b for a, b in zip(cotangent, curved, strict=True)]
        problem.move(end)
        return OuterStep(hypergradient, outer.alpha, sum(s.loss for s in steps) / len(steps), outer.loss)

    def _product(
        self, problem: BilevelProblem, theta: Tensors, direction: Tensors, batches: list[Batch], seed: int
    ) -> tuple[Tensor, Tensors]:
        """``grad_{alpha, theta} <grad_theta L_train, direction>`` at ``theta`` by central differences."""
        norm = global_norm(direction)
        if norm == 0:  # nothing flows through this step
            return torch.zeros_like(problem.alpha), [torch.zeros_like(tensor) for tensor in theta]
        step = (self.relative_step or _default_step(problem)) / norm
        ends = []
        for sign in (1.0, -1.0):
            problem.move([t + sign * step * d for t, d in zip(theta, direction, strict=True)])
            ends.append(problem.gradient(batches, train=True, seed=seed))
        plus, minus = ends
        mixed = (plus.alpha - minus.alpha) / (2 * step)
        curved = [(p - m) / (2 * step) for p, m in zip(plus.theta, minus.theta, strict=True)]
        return mixed.to(problem.alpha.dtype), curved


def _default_step(problem: BilevelProblem) -> float:
    if problem.computes_in_half():
        return 1e-1
    return 1e-4 if problem.theta[0].dtype == torch.float64 else 1e-2
