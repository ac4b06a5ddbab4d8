"""The bilevel problem at one point: gradients of both levels, and the inner steps that move theta."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from flexora.data.batch import terms
from flexora.finite import require_finite
from flexora.interruption import heed
from flexora.randomness import seeded
from flexora.search.gates import Gates, gates_of
from flexora.search.inner import ClipByNorm, InnerOptimizer, InnerState, Tensors
from flexora.search.processes import Processes
from flexora.search.schedule import Schedule, constant

if TYPE_CHECKING:
    from torch import nn

    from flexora.data.batch import Batch

#: Summed loss of one micro-batch under a model; the token counts normalise it.
LossSum = Callable[[Any, "Batch"], Tensor]


@dataclass(frozen=True)
class Gradient:
    """A loss (mean over answer tokens, nats) and its gradients with respect to theta and alpha (in its shape)."""

    loss: float
    theta: Tensors
    alpha: Tensor


class BilevelProblem:
    """min over alpha of L_val(theta_T(alpha), alpha), where theta_T is the result of T inner steps on L_train.

    Gradients come from ``torch.autograd.grad`` on the bare model: no hooks, no wrappers, and the base model may be
    quantised. Losses are sums over micro-batches and processes, divided by their joint number of answer tokens.

    Args:
        model: The model with gated LoRA.
        gates: Its gates.
        alpha: Hyperparameters, one entry for each of the gates' units.
        optimizer: The inner update rule.
        clip: Clipping of inner gradients.
        loss_sum: The loss of one micro-batch, summed over answer tokens.
        schedule: Factor of the inner learning rate at each inner step.

    Attributes:
        processes: The processes that share the search, each with micro-batches of its own; one by default.
    """

    def __init__(
        self,
        model: nn.Module,
        gates: Gates,
        alpha: Tensor,
        optimizer: InnerOptimizer,
        clip: ClipByNorm,
        loss_sum: LossSum,
        schedule: Schedule = constant,
    ) -> None:
        self.model = model
        self.gates = gates
        self.alpha = alpha
        self.optimizer = optimizer
        self.clip = clip
        self.loss_sum = loss_sum
        self.schedule = schedule
        self.processes = Processes()
        self.state = optimizer.init(self.theta)
        self._training: bool | None = None

    @property
    def theta(self) -> Sequence[Tensor]:
        """The LoRA parameters."""
        return self.gates.theta

    def computes_in_less(self) -> bool:
        """Whether losses are rounded to less than float32 on the way: by autocast, a half-precision base, or TF32."""
        device = self.alpha.device.type
        if torch.is_autocast_enabled(device):
            return True
        if device == "cuda" and self.alpha.dtype == torch.float32 and multiplies_in_tf32():
            return True
        return any(parameter.dtype.itemsize == 2 for parameter in self.model.parameters())

    @torch.no_grad()
    def move(self, theta: Sequence[Tensor]) -> None:
        """Copy ``theta`` into the model."""
        for parameter, value in zip(self.gates.theta, theta, strict=True):
            parameter.copy_(value)

    def copy_theta(self) -> Tensors:
        """A copy of the LoRA parameters."""
        return [parameter.detach().clone() for parameter in self.theta]

    def gradient(self, batches: Sequence[Batch], *, train: bool, seed: int) -> Gradient:
        """Loss and gradients at the present theta and alpha.

        Args:
            batches: Micro-batches of one gradient: this process's share of them.
            train: Dropout on or off.
            seed: Seed of the dropout masks: the same seed replays the same masks.
        """
        loss, theta = self.mean(batches, lambda part: torch.autograd.grad(part, self.theta), train=train, seed=seed)
        return Gradient(loss, theta, self.gates.alpha_gradient(theta, self.alpha))

    def mean(
        self, batches: Sequence[Batch], derive: Callable[[Tensor], Sequence[Tensor]], *, train: bool, seed: int
    ) -> tuple[float, Tensors]:
        """The mean loss per answer token, and what ``derive`` makes of each micro-batch's part of it, summed.

        Args:
            batches: Micro-batches: this process's share of them.
            derive: Derivatives of a part of the loss, the same tensors for each part.
            train: Dropout on or off.
            seed: Seed of the dropout masks.

        Raises:
            ValueError: If there is no micro-batch.
            Interrupted: Before any of them, if a signal asked any process to stop.
            NonFiniteError: If a gate, a loss or a derivative is infinite or not a number.
        """
        if not batches:
            raise ValueError("a gradient needs at least one micro-batch")
        # Autocast caches cast weights until its outermost block ends, and theta moves inside that block.
        torch.clear_autocast_cache()
        self._set_training(train)
        self.gates.apply(gates_of(self.alpha.detach()))
        device = self.theta[0].device
        tokens = self.processes.sum_number(sum(map(terms, batches)), device)
        losses: list[Tensor] = []
        total: Tensors = []
        for index, batch in enumerate(batches):
            heed(self.processes.world_size, device)
            with seeded(seed + self.processes.place(index), device), torch.enable_grad():
                part = self.loss_sum(self.model, batch) / tokens
                derived = derive(part)
            losses.append(part.detach())
            total = [a + b for a, b in zip(total, derived, strict=True)] if total else list(derived)
        values = [part.item() for part in losses]
        loss = self.processes.sum_number(sum(values), device)
        total = self.processes.sum(total)
        seen = [(value, batch["rows"]) for value, batch in zip(values, batches, strict=True)]
        names = [*self.gates.names, *(f"{name}, second order" for name in self.gates.names)][: len(total)]
        require_finite(loss, seen, total, names, self.processes.world_size, held_out=not train)
        return loss, total

    def _set_training(self, train: bool) -> None:
        """Dropout on or off. A checkpointed layer recomputes in training mode alone, so its own flag stays on."""
        if self._training == train == self.model.training:  # setting flags is slow, and nobody else has set them
            return
        self._training = train
        self.model.train(train)
        for module in self.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.training = True

    def inner_step(self, batches: Sequence[Batch], seed: int) -> Gradient:
        """One optimiser step on theta; returns the gradient it was made with, before clipping."""
        gradient = self.gradient(batches, train=True, seed=seed)
        theta, self.state = self._update(self.theta, self.state, gradient.theta)
        self.move(theta)
        return gradient

    def replay(
        self, theta: Sequence[Tensor], state: InnerState, gradients: Sequence[Tensors]
    ) -> tuple[Sequence[Tensor], InnerState]:
        """Rebuild parameters and state after known gradients, elementwise and to the bit; no model is run."""
        for gradient in gradients:
            theta, state = self._update(theta, state, gradient)
        return theta, state

    def _update(self, theta: Sequence[Tensor], state: InnerState, gradient: Tensors) -> tuple[Tensors, InnerState]:
        return self.optimizer.update(theta, self.clip(gradient), state, self.schedule(state.clock))

    def pullback(
        self,
        theta: Sequence[Tensor],
        state: InnerState,
        gradient: Tensors,
        cotangent: Tensors,
        buffer_cotangents: list[Tensors],
    ) -> tuple[Tensors, Tensors, list[Tensors]]:
        """Vector-Jacobian product of one inner step, clipping and schedule included.

        Args:
            theta: Parameters before the step.
            state: State of the optimiser before the step.
            gradient: Gradient of the step, before clipping.
            cotangent: Cotangent of the parameters after the step.
            buffer_cotangents: Cotangents of the optimiser's buffers after the step.

        Returns:
            Cotangents of the parameters, the gradient and the buffers before the step.
        """
        cotangent, clipped_cotangent, buffer_cotangents = self.optimizer.pullback(
            theta, self.clip(gradient), state, cotangent, buffer_cotangents, self.schedule(state.clock)
        )
        return cotangent, self.clip.pullback(gradient, clipped_cotangent), buffer_cotangents


def multiplies_in_tf32() -> bool:
    """Whether CUDA rounds the factors of float32 products to 10 bits, whichever of torch's settings asks for it."""
    # The older settings read as this one, and raise where it was used.
    own: str = torch.backends.cuda.matmul.fp32_precision
    return (torch.backends.fp32_precision if own == "none" else own) == "tf32"  # type: ignore[attr-defined]
