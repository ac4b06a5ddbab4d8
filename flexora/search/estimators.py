"""Hypergradient estimators: d L_val(theta_T(alpha), alpha) / d alpha, behind one small interface."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from flexora.errors import FlexoraError
from flexora.finite import NonFiniteError
from flexora.search.inner import global_norm
from flexora.search.products import InnerStep, Product, ProductName, difference, exact

if TYPE_CHECKING:
    from flexora.data.bilevel import OuterBatch
    from flexora.search.problem import BilevelProblem

#: Seeds of successive gradients lie this far apart, so that each micro-batch in between has a seed of its own.
SEED_STRIDE = 1_000


@dataclass(frozen=True)
class OuterStep:
    """What an estimator found: the hypergradient and its direct part (alpha's shape), and mean losses in nats."""

    hypergradient: Tensor
    direct: Tensor
    train_loss: float
    validation_loss: float

    def __post_init__(self) -> None:
        """Stop before alpha takes a step that no later one could mend.

        Raises:
            NonFiniteError: If the hypergradient is infinite or not a number, though every gradient was finite.
        """
        size = float(self.hypergradient.abs().max())
        if not math.isfinite(size):
            raise NonFiniteError(f"the hypergradient is {size}")


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

    What it leaves out, the way from alpha to theta_T, is as long as the T inner steps are. With AdamW at 1e-3 and T = 2
    it is 2 to 7 % of the hypergradient on SmolLM2-135M, and searches of the same steps choose what those of
    :class:`Unrolled` choose; with SGD, larger steps or more of them it can be all of it. ``search.check_every`` says.

    Args:
        official: Imitate the update of the paper's code, for comparisons only: there the gate scales the input of
            dropout, of A and of B, which makes its cube, and the inner optimiser forgets its state before every step.
    """

    def __init__(self, official: bool = False) -> None:
        self.official = official

    def __call__(self, problem: BilevelProblem, batch: OuterBatch, seed: int) -> OuterStep:
        """Inner steps, then one gradient of the validation loss."""
        problem.gates.power = 3 if self.official else 1
        losses = []
        for t, micro in enumerate(batch["train"]):
            if self.official:
                wiped = problem.optimizer.init(problem.theta)
                problem.state = replace(wiped, clock=problem.state.clock)
            losses.append(problem.inner_step(micro, seed + t * SEED_STRIDE).loss)
        outer = problem.gradient(batch["validation"], train=False, seed=seed)
        return OuterStep(outer.alpha, outer.alpha, sum(losses) / len(losses), outer.loss)


class Unrolled(Estimator):
    """Unrolled differentiation through the T inner steps, in memory that does not hold their graphs.

    theta is tiny, so the T gradients are kept, and the trajectory is walked back one step at a time; theta and the
    optimiser's moments are rebuilt elementwise from the start of the outer step:

        (h, lam) = grad_{alpha, theta} L_val(theta_T, alpha)
        for t = T-1 .. 0:
            lam, lam_g = pullback of theta_{t+1} = U_t(theta_t, g_t) at lam
            h, lam    += grad_{alpha, theta} <grad_theta L_train(theta_t, alpha), lam_g>

    Args:
        product: How the product in the last line is made. ``finite_difference``: central, with two ordinary gradients,
            one on either side of theta_t; 3T + 1 gradients an outer step, and the memory of plain LoRA.
            ``forward_difference``: with one, ahead of theta_t, and g_t; 2T + 1 gradients, and a larger error.
            ``exact``: double backward, with torch's plain attention, and the memory of one second-order graph of a
            micro-batch, whatever T is.
        last: Walk back through the last so many of the T steps alone (truncated back-propagation; Shaban et al. 2019);
            all by default. ``last=1`` is the second-order estimate of DARTS (Liu et al. 2019), and with AdamW what
            SAMA (Choe et al. 2023) approximates.
        relative_step: How far from theta_t the differences are taken, in lengths of the outer step's longest inner
            step, over which the loss had better be smooth anyway. By default 0.1, of the forward difference 0.03, and 1
            where the model computes in less than float32 (autocast, a half-precision base, or TF32). Shorter ones drown
            in rounding, longer ones in curvature. Relative errors of the defaults on SmolLM2-135M, 4 rows of ARC-Easy a
            gradient, T = 2, with AdamW (1e-3) at the cold start B = 0 and after 20 steps, then with SGD (5e-2): central
            3e-4, 3e-5, 6e-4, 1e-3; forward 2e-3, 3e-4, 4e-3, 1e-2; first order 0.02, 0.07, 0.5, 1.1. In bfloat16:
            central 0.2, 0.05, 0.04, 0.2; forward 0.5, 0.07, 0.1, 0.2; first order 0.03, 0.06, 0.5, 1.2
            (``python -m tests.benchmarks.difference_step --bf16``).
    """

    def __init__(
        self, product: ProductName = "finite_difference", last: int | None = None, relative_step: float | None = None
    ) -> None:
        if product not in get_args(ProductName):
            raise FlexoraError(
                f"search.estimator.product: {product} is unknown; give {' or '.join(get_args(ProductName))}"
            )
        if last is not None and last < 1:
            raise FlexoraError(f"search.estimator.last: {last} is too small; walk back 1 step, or use FirstOrder")
        if relative_step is not None and not relative_step > 0:
            raise FlexoraError(f"search.estimator.relative_step: {relative_step} must be positive")
        self.product = product
        self.last = last
        self.relative_step = relative_step

    def __call__(self, problem: BilevelProblem, batch: OuterBatch, seed: int) -> OuterStep:
        """Inner steps with their gradients kept, one validation gradient, and the way back."""
        problem.gates.power = 1
        central = self.product == "finite_difference"
        product: Product = exact if self.product == "exact" else difference(self.relative_step, central=central)
        start, start_state = problem.copy_theta(), problem.state
        end, gradients, lengths = start, [], []
        for t, micro in enumerate(batch["train"]):
            gradients.append(problem.inner_step(micro, seed + t * SEED_STRIDE))
            before, end = end, problem.copy_theta()
            lengths.append(global_norm([a - b for a, b in zip(end, before, strict=True)]).item())
        del before
        train_loss = sum(gradient.loss for gradient in gradients) / len(gradients)
        outer = problem.gradient(batch["validation"], train=False, seed=seed)
        hypergradient, cotangent, buffer_cotangents = outer.alpha, outer.theta, problem.state.zeros()
        first = max(0, len(gradients) - self.last) if self.last else 0
        for t in reversed(range(first, len(gradients))):
            gradient = gradients.pop()
            theta, state = problem.replay(start, start_state, [known.theta for known in gradients])
            cotangent, direction, buffer_cotangents = problem.pullback(
                theta, state, gradient.theta, cotangent, buffer_cotangents
            )
            del state  # what the product does not need makes room for it
            if global_norm(direction) == 0:  # nothing flows through this step's gradient
                continue
            step = InnerStep(theta, batch["train"][t], seed + t * SEED_STRIDE, gradient, max(lengths))
            mixed, curved = product(problem, step, direction)
            hypergradient = hypergradient + mixed
            cotangent = [a + b for a, b in zip(cotangent, curved, strict=True)]
        problem.move(end)
        return OuterStep(hypergradient, outer.alpha, train_loss, outer.loss)


def exact_hypergradient(problem: BilevelProblem, batch: OuterBatch, seed: int) -> Tensor | None:
    """The exact hypergradient of an outer step, in alpha's shape, to check an estimate by; the problem stays as it was.

    None where it is not finite: the step itself decides what becomes of that.
    """
    theta, state = problem.copy_theta(), problem.state
    try:
        return Unrolled(product="exact")(problem, batch, seed).hypergradient
    except NonFiniteError:
        return None
    finally:
        problem.move(theta)
        problem.state = state


def cosine(left: Tensor, right: Tensor) -> float | None:
    """Cosine of the angle between two hypergradients; none where one of them is zero."""
    if not left.any() or not right.any():
        return None
    # Apple's GPUs have no float64.
    return torch.cosine_similarity(left.flatten().cpu().double(), right.flatten().cpu().double(), dim=0).item()
