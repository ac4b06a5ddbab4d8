"""Inner optimisers that can be walked back: each update rule is written once, used forward and differentiated backward.

``update`` gives the same bits as torch's single-tensor optimisers. ``pullback`` is its vector-Jacobian product, taken
by autograd through the same few elementwise operations, so that it cannot drift from the rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flexora.errors import FlexoraError

Tensors = list[Tensor]


@dataclass
class InnerState:
    """State of an inner optimiser.

    Attributes:
        step: Steps done since its buffers were zero.
        buffers: For each parameter its buffers (moments).
        clock: Steps done on the schedule of the learning rate.
    """

    step: int
    buffers: list[Tensors] = field(default_factory=list)
    clock: int = 0

    def zeros(self) -> list[Tensors]:
        """Zero cotangents of the buffers."""
        return [[torch.zeros_like(buffer) for buffer in buffers] for buffers in self.buffers]


class InnerOptimizer(ABC):
    """An elementwise update rule ``(theta, g, buffers) -> (theta', buffers')``."""

    lr: float

    @abstractmethod
    def init(self, theta: Sequence[Tensor]) -> InnerState:
        """State before the first step."""

    @abstractmethod
    def rule(self, theta: Tensor, gradient: Tensor, buffers: Tensors, step: int, lr: float) -> tuple[Tensor, Tensors]:
        """The update, elementwise; ``step`` counts from 1. Differentiable, no argument is changed."""

    def frozen(self, buffers: Tensors) -> Tensor | None:
        """Where (boolean, from the buffers after the step) the update's derivative is defined as zero."""
        return None

    @torch.no_grad()
    def update(
        self, theta: Sequence[Tensor], gradients: Sequence[Tensor], state: InnerState, scale: float = 1.0
    ) -> tuple[Tensors, InnerState]:
        """One step: new parameters and new state; a schedule's factor ``scale`` multiplies the learning rate."""
        value, gradient, buffers = _joined(theta), _joined(gradients), _joined_buffers(state.buffers)
        value, buffers = self.rule(value, gradient, buffers, state.step + 1, self.lr * scale)
        return _parted(value, theta), InnerState(state.step + 1, _parted_buffers(buffers, theta), state.clock + 1)

    def pullback(
        self,
        theta: Sequence[Tensor],
        gradients: Sequence[Tensor],
        state: InnerState,
        theta_cotangent: Sequence[Tensor],
        buffer_cotangents: Sequence[Tensors],
        scale: float = 1.0,
    ) -> tuple[Tensors, Tensors, list[Tensors]]:
        """Vector-Jacobian product of one :meth:`update`.

        Args:
            theta: Parameters before the step.
            gradients: Gradients of the step.
            state: State before the step.
            theta_cotangent: Cotangent of the parameters after the step.
            buffer_cotangents: Cotangents of the buffers after the step.
            scale: The schedule's factor of the step.

        Returns:
            Cotangents of the parameters, the gradients and the buffers before the step.
        """
        values = [_joined(theta), _joined(gradients), *_joined_buffers(state.buffers)]
        inputs = [value.detach().requires_grad_() for value in values]
        with torch.enable_grad():
            new_value, new_buffers = self.rule(inputs[0], inputs[1], inputs[2:], state.step + 1, self.lr * scale)
        cotangents = [_joined(theta_cotangent), *_joined_buffers(buffer_cotangents)]
        back = list(torch.autograd.grad([new_value, *new_buffers], inputs, cotangents, materialize_grads=True))
        frozen = self.frozen([buffer.detach() for buffer in new_buffers])
        if frozen is not None:
            back = [back[0], *(cotangent.masked_fill(frozen, 0.0) for cotangent in back[1:])]
        return _parted(back[0], theta), _parted(back[1], theta), _parted_buffers(back[2:], theta)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """All entries in one vector: a rule is elementwise, and a few long operations are faster than many short ones."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _parted(joined: Tensor, like: Sequence[Tensor]) -> Tensors:
    """The parts of a joined vector, in the shapes of the tensors it was joined from."""
    parts = torch.split_with_sizes(joined, [tensor.numel() for tensor in like])
    return [part.view_as(tensor) for part, tensor in zip(parts, like, strict=True)]


def _joined_buffers(buffers: Sequence[Tensors]) -> Tensors:
    """Each kind of buffer in one vector, from the buffers of each parameter."""
    return [_joined(kind) for kind in zip(*buffers, strict=True)]


def _parted_buffers(joined: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensors]:
    """The buffers of each parameter, from vectors of each kind."""
    if not joined:
        return [[] for _ in like]
    return [list(kept) for kept in zip(*(_parted(kind, like) for kind in joined), strict=True)]


class SGD(InnerOptimizer):
    """Stochastic gradient descent with optional momentum, as ``torch.optim.SGD``.

    Args:
        lr: Learning rate.
        momentum: Momentum factor; 0 keeps no buffer.
        weight_decay: L2 penalty: adds ``weight_decay * theta`` to the gradient.
    """

    def __init__(self, lr: float = 1e-2, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        _require_positive(lr)
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay

    def init(self, theta: Sequence[Tensor]) -> InnerState:
        """Zero buffers: torch starts with the first gradient itself, which is ``momentum * 0 + g``."""
        return InnerState(0, [[torch.zeros_like(t)] if self.momentum else [] for t in theta])

    def rule(self, theta: Tensor, gradient: Tensor, buffers: Tensors, step: int, lr: float) -> tuple[Tensor, Tensors]:
        """``b' = momentum * b + g + weight_decay * theta``; ``theta' = theta - lr * b'``."""
        if self.weight_decay:
            gradient = gradient.add(theta, alpha=self.weight_decay)
        if not self.momentum:
            return theta.add(gradient, alpha=-lr), []
        buffer = buffers[0].mul(self.momentum).add(gradient)
        return theta.add(buffer, alpha=-lr), [buffer]


class AdamW(InnerOptimizer):
    """Adam with bias correction and decoupled weight decay, as ``torch.optim.AdamW`` (Loshchilov and Hutter, 2019).

    Args:
        lr: Learning rate.
        betas: Decay rates of the first and second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
    """

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        _require_positive(lr)
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay

    def init(self, theta: Sequence[Tensor]) -> InnerState:
        """Zero moments."""
        return InnerState(0, [[torch.zeros_like(t), torch.zeros_like(t)] for t in theta])

    def rule(self, theta: Tensor, gradient: Tensor, buffers: Tensors, step: int, lr: float) -> tuple[Tensor, Tensors]:
        """The operations of torch's single-tensor AdamW in its order, so that the bits agree."""
        beta1, beta2 = self.betas
        decayed = theta.mul(1 - lr * self.weight_decay)
        first = buffers[0].lerp(gradient, 1 - beta1)
        second = buffers[1].mul(beta2).addcmul(gradient, gradient, value=1 - beta2)
        # The root's derivative at 0 is infinite and would turn into NaN; there the rule is frozen (see below).
        root = torch.where(second > 0, second, 1.0).sqrt().where(second > 0, 0.0)
        denominator = (root / (1 - beta2**step) ** 0.5).add(self.eps)
        return decayed.addcdiv(first, denominator, value=-lr / (1 - beta1**step)), [first, second]

    def frozen(self, buffers: Tensors) -> Tensor:
        """Where the second moment is still 0: there every gradient so far was 0, as it is for A while B = 0."""
        return buffers[1] == 0


def _require_positive(lr: float) -> None:
    if not lr > 0:
        raise FlexoraError(f"search.inner_optimizer.lr: {lr} must be positive")


@dataclass(frozen=True)
class ClipByNorm:
    """Gradient clipping by the global norm, as ``torch.nn.utils.clip_grad_norm_``: ``g * min(1, M / (norm + 1e-6))``.

    Attributes:
        max_norm: The bound M; none switches clipping off.
    """

    max_norm: float | None = None

    def __call__(self, gradients: Sequence[Tensor]) -> Tensors:
        """The clipped gradients."""
        if self.max_norm is None:
            return list(gradients)
        factor = (self.max_norm / (global_norm(gradients) + 1e-6)).clamp(max=1.0)
        return [gradient * factor for gradient in gradients]

    def pullback(self, gradients: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Tensors:
        """Vector-Jacobian product at ``gradients``: a scaling, less a rank-one term where clipping was active."""
        if self.max_norm is None:
            return list(cotangents)
        norm = global_norm(gradients)
        factor = self.max_norm / (norm + 1e-6)
        if factor >= 1.0:
            return list(cotangents)
        along = inner_product(gradients, cotangents) * factor / ((norm + 1e-6) * norm)
        return [factor * c - along * g for g, c in zip(gradients, cotangents, strict=True)]


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all entries together, a scalar."""
    norms: list[Tensor] = [torch.linalg.vector_norm(tensor) for tensor in tensors]
    whole: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return whole


def inner_product(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Sum of the products of all entries, a scalar."""
    products: list[Tensor] = [torch.sum(a * b) for a, b in zip(left, right, strict=True)]
    return torch.stack(products).sum()
