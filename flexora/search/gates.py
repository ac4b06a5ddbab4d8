"""Gates ``g = n * softmax(alpha)`` in PEFT's own ``scaling``, and their gradient at no cost.

The gate multiplies the LoRA output of its layer once: ``h = W0 x + g_i * (lora_alpha / r) * B A x``. It is written into
PEFT's ``scaling`` as a plain float, so a gated model runs exactly as plain LoRA runs and saves no more activations.

The loss sees only the product ``g_i * B``, which gives the gradient of the gate from that of B:

    dL/dg_i = sum over the adapted projections behind the gate of <B, dL/dB> / g_i

and, through the softmax, ``dL/dalpha_j = c_j - (g_j / n) * sum_i c_i`` with ``c_i = g_i * dL/dg_i``. No division is
left, so a gate near zero does no harm. The same identity holds for the mixed product of the unrolled hypergradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from flexora.errors import FlexoraError
from flexora.finite import NonFiniteError
from flexora.search.units import Units

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "default"


def gates_of(alpha: Tensor) -> Tensor:
    """``n * softmax(alpha)`` over all n entries, in alpha's shape; exactly 1.0 at ``alpha = 0``.

    ``n * torch.softmax(0)`` is not exact (n = 41, 47, ...): the product rounds what the division rounded. Here the
    logarithm of n is rounded as ``logsumexp`` rounds it, and the two cancel.
    """
    flat = alpha.flatten()
    count = torch.full_like(flat[0], flat.numel())
    return torch.exp(alpha - torch.logsumexp(flat, 0) + torch.log(count))


@dataclass
class _Site:
    """One adapted projection: the unit that gates it, PEFT's module, its own scaling, and its B's place in theta."""

    unit: int
    module: LoraLayer
    scaling: float
    b_index: int
    parameters: int


class Gates:
    """The gates of a model that has LoRA on every layer.

    Args:
        model: PEFT model with one LoRA adapter.
        layers_path: Path of the list of decoder layers, from the model's family.
        units: What has a gate of its own: layers, or their projections.

    Attributes:
        theta: The LoRA parameters in a fixed order; hypergradients and optimiser states follow it.
        names: Their names, in the same order.
        units: What has a gate of its own.
        power: The LoRA output is scaled by the gate to this power: 1, except to imitate the paper's code.

    Raises:
        FlexoraError: If the adapter has parameters beside A and B (DoRA magnitudes, biases), or is a variant of LoRA
            that computes something else with them: the identity above then does not hold.
    """

    def __init__(self, model: PeftModel, layers_path: str, units: Units) -> None:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        for name, _ in named:
            if not name.endswith((f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight")):
                raise FlexoraError(
                    f"search: {name} is neither LoRA's A nor B; search needs plain LoRA (no DoRA, no bias): "
                    "set what is more in finetune.adapter alone"
                )
        self.theta: list[torch.nn.Parameter] = [parameter for _, parameter in named]
        self.names = [name for name, _ in named]
        self.units = units
        self.power = 1
        index = {id(parameter): place for place, parameter in enumerate(self.theta)}
        self._sites = []
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer) and ADAPTER in module.lora_B:
                if ADAPTER in module.lora_variant:
                    raise FlexoraError(
                        f"search: {name} computes {type(module.lora_variant[ADAPTER]).__name__}; search needs plain "
                        "LoRA: set what makes it another in finetune.adapter alone"
                    )
                layer, *path = name.split(f"{layers_path}.", 1)[1].split(".")
                b = module.lora_B[ADAPTER].weight
                size = b.numel() + module.lora_A[ADAPTER].weight.numel()
                unit = units.index(int(layer), path[-1])
                self._sites.append(_Site(unit, module, module.scaling[ADAPTER], index[id(b)], size))
        self._behind = torch.zeros(len(units), len(self._sites))  # 1 where a gate is that of a projection
        for place, site in enumerate(self._sites):
            self._behind[site.unit, place] = 1.0

    @property
    def parameters(self) -> list[int]:
        """Number of LoRA parameters behind each gate, in the flat order of alpha."""
        counts = [0] * len(self.units)
        for site in self._sites:
            counts[site.unit] += site.parameters
        return counts

    def apply(self, gates: Tensor) -> None:
        """Write the gates, in alpha's shape, into the model."""
        for site, factor in zip(self._sites, self._factors(gates), strict=True):
            site.module.scaling[ADAPTER] = site.scaling * factor

    def _factors(self, gates: Tensor) -> list[float]:
        """By how much each site's LoRA output is scaled.

        Raises:
            NonFiniteError: If a gate is infinite or not a number.
        """
        values = gates.flatten().tolist()
        for unit, value in zip(self.units, values, strict=True):
            if not math.isfinite(value):
                raise NonFiniteError(f"the gate of {unit} is {value}")
        return [values[site.unit] ** self.power for site in self._sites]

    def restore(self) -> None:
        """Give every projection its own scaling back: the model is plain LoRA again."""
        for site in self._sites:
            site.module.scaling[ADAPTER] = site.scaling

    @contextmanager
    def folded(self, gates: Tensor) -> Iterator[None]:
        """Have the gates, in alpha's shape, inside B for the length of a block: plain LoRA with the gated logits.

        After it B is what it was, and the model is plain LoRA without gates.
        """
        self.restore()
        places = [site.b_index for site in self._sites]
        kept = [self.theta[place].detach().clone() for place in places]
        with torch.no_grad():
            for place, factor in zip(places, self._factors(gates), strict=True):
                self.theta[place].mul_(factor)
        try:
            yield
        finally:
            with torch.no_grad():
                for place, b in zip(places, kept, strict=True):
                    self.theta[place].copy_(b)

    def alpha_gradient(self, gradients: Sequence[Tensor], alpha: Tensor) -> Tensor:
        """Gradient of a loss with respect to alpha, from its gradient with respect to theta at the same point.

        Args:
            gradients: ``dL/dtheta`` in the order of :attr:`theta`.
            alpha: Hyperparameters whose gates are applied.

        Returns:
            In alpha's shape and precision; it sums to zero, as every gradient through a softmax does.
        """
        return self._through_softmax([gradients], [self.theta], alpha)

    def mixed_product(
        self, direction: Sequence[Tensor], gradients: Sequence[Tensor], curved: Sequence[Tensor], alpha: Tensor
    ) -> Tensor:
        """``d/dalpha <dL/dtheta, direction>``: with H the Hessian in theta, ``c_i = <v_B, dL/dB> + <B, (H v)_B>``.

        Args:
            direction: The vector v, like :attr:`theta`.
            gradients: ``dL/dtheta`` at theta.
            curved: ``H v`` at theta.
            alpha: Hyperparameters whose gates are applied.

        Returns:
            In alpha's shape and precision.
        """
        return self._through_softmax([gradients, curved], [direction, self.theta], alpha)

    def _through_softmax(
        self, left: Sequence[Sequence[Tensor]], right: Sequence[Sequence[Tensor]], alpha: Tensor
    ) -> Tensor:
        """From ``c``, products of what belongs to each gate's B summed over the pairs, to the gradient of alpha."""
        places = [site.b_index for site in self._sites]
        pairs = [(a[place], b[place].detach()) for a, b in zip(left, right, strict=True) for place in places]
        products = torch.stack([torch.sum(a * b) for a, b in pairs]).to(alpha.dtype).view(len(left), -1).sum(0)
        # Not a matrix product, which autocast would round; not a sum by index, whose order varies on a GPU.
        self._behind = self._behind.to(alpha)
        contribution = self.power * (self._behind * products).sum(1)
        gates = gates_of(alpha.detach()).flatten()
        return (contribution - gates / len(self.units) * contribution.sum()).view_as(alpha)
